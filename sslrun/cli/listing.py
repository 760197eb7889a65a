"""`sslrun runs`: the runs in `outputs/`, each with its newest evaluation."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from sslrun.base.errors import UserError
from sslrun.base.output import as_csv, as_json, new_table
from sslrun.base.text import metric
from sslrun.config.commands import EVALUATE, LISTED
from sslrun.config.names import nearest
from sslrun.run.find import find, labels_text, read_summary, score

SHOWN = ("run", "stage", "status", "pretext", "backbone", "dataset", "labels", "score", "duration")
METRICS = ("val/knn_accuracy", "val/accuracy", "val/f1_macro", "test/accuracy", "test/f1_macro")
COLUMNS = (*SHOWN, "started", "init", "mode", "labels_train", "labels_val", *METRICS, "evaluation")
FORMATS = ("table", "json", "csv")


def print_runs(stage: str | None, format: str) -> None:
    """Print all runs, oldest first.

    Raises:
        UserError: no such stage or format.
    """
    if format not in FORMATS:
        raise UserError(f"format={format}: must be one of {', '.join(FORMATS)}")
    found = rows(stage)
    if format == "json":
        sys.stdout.write(as_json(found))
    elif format == "csv":
        sys.stdout.write(as_csv(found, COLUMNS))
    elif not found:
        print("No runs in outputs/ yet; start one with sslrun pretrain FOLDER.", file=sys.stderr)
    else:
        _print_table(found)


def rows(stage: str | None = None) -> list[dict[str, Any]]:
    """Return the runs in `outputs/`, oldest first, with the columns `COLUMNS`; what a run does not have is None.

    Args:
        stage: a command, or None for all.

    Raises:
        UserError: no such stage.
    """
    if stage is not None and stage not in LISTED:
        raise UserError(f"{stage}: no such stage{nearest(stage, LISTED) or '.'} Stages: {', '.join(LISTED)}")
    evaluations = {Path(s["of_run"]).resolve(): (str(p), s) for p, s in find([EVALUATE]) if _is_of_run(s)}
    return [_row(p, s, evaluations.get(p.resolve())) for p, s in find([stage] if stage else LISTED)]


def row_of(directory: Path) -> dict[str, Any]:
    """Return the row of one run."""
    return _row(directory, read_summary(directory), None)


def _is_of_run(summary: Mapping[str, Any]) -> bool:
    return summary["status"] == "finished" and isinstance(summary.get("of_run"), str)


def _row(path: Path, summary: dict[str, Any], evaluation: tuple[str, dict[str, Any]] | None) -> dict[str, Any]:
    named = score(summary)
    measured = {**(evaluation[1] if evaluation else {}), **summary}
    return {
        "run": str(path),
        "stage": summary["stage"],
        "status": summary["status"],
        "pretext": summary.get("pretext") or summary.get("init"),
        "backbone": summary.get("backbone"),
        "dataset": summary.get("dataset"),
        "labels": labels_text(summary),
        "score": named and "{} {:.4f}".format(*named),
        "duration": round(summary.get("wall_time_seconds", 0.0), 1),
        **{k: summary.get(k) for k in ("started", "init", "mode", "labels_train", "labels_val")},
        **{k: measured.get(k) for k in METRICS},
        "evaluation": evaluation and evaluation[0],
    }


def _print_table(found: list[dict[str, Any]]) -> None:
    table = new_table(SHOWN, {"labels", "duration"}, fold=True)
    for row in found:
        name, _, value = (row["score"] or "").partition(" ")
        formatted = {**row, "score": value and metric(name, float(value))}
        cells = ["" if formatted[c] is None else str(formatted[c]) for c in SHOWN[:-1]]
        minutes, seconds = divmod(round(row["duration"]), 60)
        table.add_row(*map(Text, cells), f"{minutes}:{seconds:02d}", style="red" if row["status"] == "failed" else "")
    Console(width=None if sys.stdout.isatty() else 200).print(table)
