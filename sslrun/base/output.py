"""Output of commands: JSON, JSON lines and CSV for programs, tables for people."""

import csv
import io
import json
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from sslrun.base.files import write_text

if TYPE_CHECKING:
    from rich.table import Table

Row = dict[str, Any]


def as_json(content: Any) -> str:
    """Return any content as indented JSON."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def as_jsonl(rows: Sequence[Row]) -> str:
    """Return rows as JSON lines."""
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)


def as_csv(rows: Sequence[Row], columns: Sequence[str] = ()) -> str:
    """Return rows as CSV, with booleans in lower case.

    Args:
        columns: columns that come first, even without rows; all other keys of the rows follow.
    """
    out = io.StringIO()
    names = list(dict.fromkeys([*columns, *(k for r in rows for k in r)]))
    how = _quoting(str(v) for r in rows for v in r.values())
    writer = csv.DictWriter(out, names, lineterminator="\n", quoting=how)
    writer.writeheader()
    writer.writerows({k: str(v).lower() if isinstance(v, bool) else v for k, v in r.items()} for r in rows)
    return out.getvalue()


def write_csv_lines(file: IO[str], header: Sequence[str], names: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """Write a long CSV file line by line.

    Args:
        header: names of the columns.
        names: first column.
        lines: the other columns of each line, which are numbers.
    """
    writer = csv.writer(file, lineterminator="\n", quoting=_quoting(names))
    writer.writerow(header)
    writer.writerows([name, *line] for name, line in zip(names, lines, strict=True))


def _quoting(cells: Iterable[str]) -> Literal[0, 1]:
    """Return the quoting for these cells. QUOTE_MINIMAL leaves a lone carriage return unquoted; QUOTE_ALL does not."""
    return csv.QUOTE_ALL if any("\r" in cell for cell in cells) else csv.QUOTE_MINIMAL


def new_table(columns: Sequence[str], numbers: Collection[str] = (), *, fold: bool = False, **words: Any) -> "Table":
    """Return an empty table in the common style.

    Args:
        columns: names of the columns.
        numbers: columns that are right-aligned.
        fold: wrap long cells instead of truncating them.
        words: title and caption, passed to rich's `Table`.
    """
    from rich import box

    from sslrun.base.records import TableOrRecords

    table = TableOrRecords(box=box.SIMPLE_HEAD, **words)
    for name in columns:
        justify: Literal["left", "right"] = "right" if name in numbers else "left"
        table.add_column(name, overflow="fold" if fold else "ellipsis", justify=justify)
    return table


def as_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], numbers: Collection[str] = ()) -> str:
    """Format rows as a table as wide as the terminal, or 160 characters without one.

    Args:
        columns, numbers: see `new_table`.
        rows: cells are strings or rich `Text`.
    """
    from rich.console import Console
    from rich.text import Text

    table = new_table(columns, numbers, fold=True)
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    console = Console(file=io.StringIO(), width=None if sys.stdout.isatty() else 160)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file."""
    write_text(path, as_json(content))


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as CSV, with a column for every key of any row."""
    write_text(path, as_csv(rows))
