"""Reading a label file: CSV in its dialects and encodings, or JSON lines, as rows of text."""

import codecs
import csv
import io
import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sslrun.base.errors import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
SEPARATORS = (",", "\t", ";", "|", " ")
HEAD = 100  # rows that the separator is recognized from
# The longest first: UTF-32's mark begins like that of UTF-16.
MARKS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
         (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
NOT_TEXT = ((b"PK\x03\x04", "an Excel workbook or an archive"), (b"\xd0\xcf\x11\xe0", "an Excel workbook"),
            (b"PAR1", "a Parquet file"), (b"\x1f\x8b", "compressed"))  # fmt: skip


@dataclass
class Table:
    """The rows of a label file.

    Attributes:
        path: of the file.
        rows: of text, without surrounding spaces, all of the same length. In CSV the first one may be the header.
        columns: names of the columns of JSON lines; None for CSV.
        nested: columns of JSON lines with lists or objects, which are not text.
        encoding: of the file.
    """

    path: Path
    rows: list[list[str]]
    columns: list[str] | None = None
    nested: frozenset[str] = frozenset()
    encoding: str = "utf-8"


def read_table(path: Path, limit: int | None = None) -> Table:
    """Read a label file.

    Args:
        path: CSV, TSV or JSON lines; separator and encoding are recognized.
        limit: number of bytes to read; None is the whole file.

    Raises:
        UserError: it cannot be opened, is empty, is no text, or has a line that is not like the others.
    """
    try:
        with path.open("rb") as file:
            content = file.read(-1 if limit is None else limit)
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror}") from None
    text, encoding = _decoded(content, path, whole := len(content) != limit)
    if not whole:
        text = text[: text.rfind("\n") + 1]
    if not text.strip():
        raise UserError(f"{path} is empty")
    is_json = text.lstrip()[:1] == "{" or path.suffix.lower() in (".jsonl", ".ndjson", ".json")
    table = _json_lines(text, path) if is_json else Table(path, _csv_rows(text, path))
    return replace(table, encoding=encoding)


def _decoded(content: bytes, path: Path, whole: bool) -> tuple[str, str]:
    """Return the content as text, and its encoding: that of its byte-order mark, or UTF-8, or else Windows-1252."""
    for start, kind in NOT_TEXT:
        if content.startswith(start):
            raise UserError(f"{path} is {kind}: save it as CSV")
    encoding = next((name for mark, name in MARKS if content.startswith(mark)), "utf-8")
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(content, final=whole)  # without half a character
    except UnicodeDecodeError:
        encoding = "Windows-1252"
        text = content.decode("cp1252", "replace")
    if "\0" in text:
        raise UserError(f"{path} is not a text file: save it as CSV in UTF-8")
    return text, encoding


def _csv_rows(text: str, path: Path) -> list[list[str]]:
    declared = re.match(r"sep=(.)\r?\n", text)  # a first line that Excel writes and reads
    if declared:
        text = text[declared.end() :]
    separator = declared[1] if declared else _separator(text)
    rows = _parsed(text, separator, path)
    if not rows:
        raise UserError(f"{path} has no rows")
    width = len(rows[0])
    for number, row in enumerate(rows, 1):
        if len(row) > width and any(row[width:]):
            raise UserError(
                f"{path}: row {number} has {len(row)} values, the first row has {width}: put values that contain "
                f"{_named(separator)} in quotes"
            )
    rows = [row if len(row) == width else [*row[:width], *[""] * (width - len(row))] for row in rows]
    used = width
    while not any(row[used - 1] for row in rows):
        used -= 1  # an empty column at the end
    return rows if used == width else [row[:used] for row in rows]


def _parsed(text: str, separator: str, path: Path) -> list[list[str]]:
    """Return the rows of CSV that are not empty, without spaces around values."""
    reader = _reader(text, separator, strict=True)
    try:
        rows = list(reader)
    except csv.Error as error:
        if text.count('"') % 2 or "field larger" in str(error):
            raise UserError(f"{path}: line {reader.line_num}: {error}: check the quotes") from None
        rows = list(_reader(text, separator, strict=False))  # spaces between a quote and a separator, say
    if not re.search(r"[^\S\r\n]", text):  # no spaces: saves a third of the time
        return [row for row in rows if any(row)]
    return [values for row in rows if any(values := [v.strip() for v in row])]


def _reader(text: str, separator: str, strict: bool) -> Any:
    return csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=strict)


def _separator(text: str) -> str:
    """Return the separator that gives most rows of the beginning the same number of columns, two or more."""
    head = "".join(text[: 1 << 16].splitlines(keepends=True)[:HEAD])
    scores = {}
    for separator in SEPARATORS:
        widths = Counter(len(row) for row in _reader(head, separator, strict=False) if any(row))
        width, n = widths.most_common(1)[0] if widths else (1, 0)
        scores[separator] = n / widths.total() if width > 1 else 0.0
    return max(scores, key=lambda s: scores[s])


def _named(separator: str) -> str:
    return {",": "a comma", "\t": "a tab", ";": "a semicolon", " ": "a space"}.get(separator, separator)


def _json_lines(text: str, path: Path) -> Table:
    records: list[dict[str, Any]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}: line {number} is not JSON ({error.msg}); expected JSON lines, one object per line"
            ) from None
        if not isinstance(record, dict):
            raise UserError(f"{path}: line {number} is not a JSON object; expected JSON lines, one object per line")
        records.append(record)
    columns = list(dict.fromkeys(k for r in records for k in r))
    nested = frozenset(k for r in records for k, v in r.items() if isinstance(v, list | dict))
    return Table(path, [[_text(r.get(c)) for c in columns] for r in records], columns, nested)


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()
