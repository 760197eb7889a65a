"""`sslrun runs`: a table of the runs in `outputs/`."""

import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from sslrun.base.errors import UserError
from sslrun.base.output import as_csv, as_json, new_table
from sslrun.base.text import metric
from sslrun.config.commands import LISTED
from sslrun.config.names import nearest
from sslrun.run.find import find, labels_text, score

COLUMNS = ("run", "stage", "status", "pretext", "backbone", "dataset", "labels", "score", "duration")


def print_runs(stage: str | None, format: str) -> None:
    """Print all runs, oldest first.

    Raises:
        UserError: no such stage or format.
    """
    if stage is not None and stage not in LISTED:
        raise UserError(f"{stage}: no such stage{nearest(stage, LISTED) or '.'} Stages: {', '.join(LISTED)}")
    if format not in ("table", "json", "csv"):
        raise UserError(f"--format {format}: must be one of table, json, csv")
    rows = [_row(str(path), s) for path, s in find([stage] if stage else LISTED)]
    plain = [{**r, "score": r["score"] and "{} {:.4f}".format(*r["score"])} for r in rows]
    if format == "json":
        sys.stdout.write(as_json(plain))
    elif format == "csv":
        sys.stdout.write(as_csv(plain, COLUMNS))
    elif not rows:
        print("No runs in outputs/ yet; start one with sslrun pretrain.", file=sys.stderr)
    else:
        _print_table(rows)


def _row(path: str, summary: dict[str, Any]) -> dict[str, Any]:
    named = score(summary)
    return {
        "run": path,
        "stage": summary["stage"],
        "status": summary["status"],
        "pretext": summary.get("pretext") or summary.get("init"),
        "backbone": summary.get("backbone"),
        "dataset": summary.get("dataset"),
        "labels": labels_text(summary),
        "score": named,
        "duration": round(summary.get("wall_time_seconds", 0.0), 1),
    }


def _print_table(rows: list[dict[str, Any]]) -> None:
    table = new_table(COLUMNS, {"labels", "duration"}, fold=True)
    for row in rows:
        formatted = {**row, "score": row["score"] and metric(*row["score"])}
        cells = ["" if formatted[c] is None else str(formatted[c]) for c in COLUMNS[:-1]]
        minutes, seconds = divmod(round(row["duration"]), 60)
        table.add_row(*map(Text, cells), f"{minutes}:{seconds:02d}", style="red" if row["status"] == "failed" else "")
    Console(width=None if sys.stdout.isatty() else 200).print(table)
