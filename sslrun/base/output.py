"""What commands print and write: for programs as JSON, JSON lines or CSV, for people as a table."""

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
    """Return rows as one JSON list, or any other content, for people to read, too."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def as_jsonl(rows: Sequence[Row]) -> str:
    """Return rows as one JSON object a line."""
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)


def as_csv(rows: Sequence[Row], columns: Sequence[str] = ()) -> str:
    """Return rows as CSV; true and false are said in lower case.

    Args:
        columns: that are there even if no row is; then every other key that any of the rows has.
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
        header: the names of the columns.
        names: of the lines, their first column.
        lines: the other columns of each, which are numbers.
    """
    writer = csv.writer(file, lineterminator="\n", quoting=_quoting(names))
    writer.writerow(header)
    writer.writerows([name, *line] for name, line in zip(names, lines, strict=True))


def _quoting(cells: Iterable[str]) -> Literal[0, 1]:
    """Return how the csv module must quote these cells: one with a carriage return alone is quoted only if all are."""
    return csv.QUOTE_ALL if any("\r" in cell for cell in cells) else csv.QUOTE_MINIMAL


def new_table(columns: Sequence[str], numbers: Collection[str] = (), *, fold: bool = False, **words: Any) -> "Table":
    """Return a table without rows, in the look that all tables have.

    Args:
        columns: their names.
        numbers: columns that are flush right.
        fold: long cells take several lines, rather than be cut.
        words: title and caption, as rich's `Table` takes them.
    """
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, **words)
    for name in columns:
        justify: Literal["left", "right"] = "right" if name in numbers else "left"
        table.add_column(name, overflow="fold" if fold else "ellipsis", justify=justify)
    return table


def as_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], numbers: Collection[str] = ()) -> str:
    """Return rows of text as a table as wide as the terminal, or 160 characters where there is none.

    Args:
        columns, numbers: as of `new_table`.
        rows: of strings or rich's texts.
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
    """Write rows as CSV, with every key that any of them has as a column."""
    write_text(path, as_csv(rows))
