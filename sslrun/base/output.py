"""What a command prints on standard output: for programs as JSON, JSON lines or CSV, for people as a table."""

import csv
import io
import json
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from sslrun.base.files import write_text

Row = dict[str, Any]


def as_json(rows: Sequence[Row]) -> str:
    """Return rows as one JSON list."""
    return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"


def as_jsonl(rows: Sequence[Row]) -> str:
    """Return rows as one JSON object a line."""
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)


def as_csv(rows: Sequence[Row]) -> str:
    """Return rows as CSV, with every key that any of them has as a column; true and false are said in lower case."""
    out = io.StringIO()
    names = list(dict.fromkeys(k for r in rows for k in r))
    how = quoting(str(v) for r in rows for v in r.values())
    writer = csv.DictWriter(out, names, lineterminator="\n", quoting=how)
    writer.writeheader()
    writer.writerows({k: str(v).lower() if isinstance(v, bool) else v for k, v in r.items()} for r in rows)
    return out.getvalue()


def quoting(cells: Iterable[str]) -> Literal[0, 1]:
    """Return how the csv module must quote these cells: one with a carriage return alone is quoted only if all are."""
    return csv.QUOTE_ALL if any("\r" in cell for cell in cells) else csv.QUOTE_MINIMAL


def as_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], numbers: Collection[str] = ()) -> str:
    """Return rows of text as a table as wide as the terminal, or 160 characters where there is none.

    Args:
        columns: their names.
        rows: of strings or rich's texts.
        numbers: columns that are flush right.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for name in columns:
        table.add_column(name, overflow="fold", justify="right" if name in numbers else "left")
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    console = Console(file=io.StringIO(), width=None if sys.stdout.isatty() else 160)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as CSV, with every key that any of them has as a column."""
    write_text(path, as_csv(rows))
