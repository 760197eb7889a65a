"""`sslrun weights`: a table of the published weights on this machine, and of some that can be had."""

import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from sslrun.base.errors import UserError
from sslrun.base.output import as_csv, as_json, new_table
from sslrun.models.published import Published, on_this_machine, to_be_had

COLUMNS = ("network", "image_size", "megabytes", "license", "here", "source", "command")


def print_weights(format: str) -> None:
    """Print the weights that are here first; the first of them is that of `init=pretrained`.

    Raises:
        UserError: no such format.
    """
    if format not in ("table", "json", "csv"):
        raise UserError(f"--format {format}: must be one of table, json, csv")
    rows = [_row(w) for w in (*on_this_machine(), *to_be_had())]
    if format == "json":
        sys.stdout.write(as_json(rows))
    elif format == "csv":
        sys.stdout.write(as_csv(rows, COLUMNS))
    else:
        _print_table(rows)


def _row(weights: Published) -> dict[str, Any]:
    return {
        "network": weights.name,
        "image_size": weights.image_size,
        "megabytes": weights.megabytes and round(weights.megabytes, 1),
        "license": weights.license,
        "here": weights.path is not None,
        "source": weights.source,
        "command": weights.command,
    }


def _print_table(rows: list[dict[str, Any]]) -> None:
    columns = ("network", "px", "MB", "license", "", "command")
    table = new_table(columns, {"px", "MB"}, fold=True)
    for row in rows:
        size = "" if row["megabytes"] is None else f"{row['megabytes']:.0f}"
        here = "here" if row["here"] else "to install" if row["command"].startswith("pip") else "to download"
        cells = (row["network"], str(row["image_size"]), size, row["license"], here, row["command"])
        table.add_row(*map(Text, cells))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    print("Nothing is downloaded until the command is typed. The first that is here is taken by init=pretrained.")
