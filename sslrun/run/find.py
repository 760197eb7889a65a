"""Finding and reading earlier runs. torch is not imported here."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sslrun.base.console import log_once
from sslrun.base.errors import UserError
from sslrun.config.build import renamed
from sslrun.config.commands import FOR_ENCODER, LISTED
from sslrun.config.renames import FOLDERS, SUMMARY, renamed_keys, renamed_overrides, with_label_counts

OUTPUTS = Path("outputs")
STUDY_RUNS = "study_runs"  # folder for runs of studies and of mode=auto
LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"
FoundRun = tuple[Path, dict[str, Any]]  # a run's directory and its summary


def has_checkpoint(directory: Path) -> bool:
    """Return whether a run directory has a checkpoint to resume from."""
    return (directory / LAST).is_file() or (directory / PREVIOUS).is_file()


def read_summary(directory: Path) -> dict[str, Any]:
    """Read a run's `summary.json`.

    Raises:
        UserError: there is none, or it is not a summary.
    """
    path = directory / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except NotADirectoryError:
        raise UserError(f"{directory} is a file: use the run's folder, {directory.parent}") from None
    except FileNotFoundError:
        jobs = sorted(p.parent.name for p in directory.glob("*/summary.json"))
        if jobs:
            raise UserError(f"{directory} is a sweep; use one of its runs, such as {directory / jobs[0]}") from None
        raise UserError(f"{directory} is not a run of sslrun (it has no summary.json)") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    kinds = {"stage": str, "status": str, "config": dict, "overrides": list, "wall_time_seconds": int | float}
    if not isinstance(summary, dict) or not all(isinstance(summary.get(k), kind) for k, kind in kinds.items()):
        raise UserError(f"{path} is not the summary of a run")
    if not all(isinstance(o, str) and "=" in o for o in summary["overrides"]) or not summary["config"]:
        raise UserError(f"{path} is not the summary of a run")
    overrides = {k: renamed_overrides(summary[k]) for k in ("overrides", "of_overrides") if k in summary}
    return with_label_counts(renamed_keys(summary, SUMMARY)) | overrides | {"config": renamed(summary["config"])}


def whole_seconds(summary: Mapping[str, Any]) -> float:
    """Return the seconds of a run, with those that cached results of its preparation have saved."""
    seconds: float = summary["wall_time_seconds"] + summary.get("cached_seconds", 0.0)
    return seconds


def job_order(job: Path) -> tuple[int, str]:
    """Return the sort key of a job of a sweep."""
    return (int(job.name) if job.name.isdigit() else 0, job.name)


def is_finished(directory: Path) -> bool:
    """Return whether a directory contains a finished run."""
    return (directory / "summary.json").is_file() and read_summary(directory)["status"] == "finished"


def is_complete(directory: Path) -> bool:
    """Return whether a directory contains a finished run which, if it trains an encoder, has its checkpoint."""
    return is_finished(directory) and (read_summary(directory)["stage"] not in FOR_ENCODER or has_checkpoint(directory))


def find(stages: Sequence[str] = LISTED, study_runs: bool = False) -> list[FoundRun]:
    """Return all runs in `outputs/`, oldest first, as (directory, summary); damaged ones are skipped with a warning.

    Args:
        study_runs: include the runs of studies.
    """
    runs = []
    for stage in stages:
        for path in [*OUTPUTS.glob(f"{stage}/*/summary.json"), *OUTPUTS.glob(f"{stage}/*/*/summary.json")]:
            if path.parent.parent.name in (STUDY_RUNS, *FOLDERS) and not study_runs:
                continue
            try:
                runs.append((path.parent, read_summary(path.parent)))
            except UserError:
                log_once(path, f"Skipped {path}: it cannot be read", logging.WARNING)
    return sorted(runs, key=lambda f: str(f[1].get("started")))


def newest(runs: Sequence[FoundRun], fits: Callable[[Path, dict[str, Any]], bool] = lambda *_: True) -> FoundRun | None:
    """Return the newest run for which `fits` is true, or None; runs are sorted, oldest first."""
    return next((run for run in reversed(runs) if fits(*run)), None)


def labels_text(summary: Mapping[str, Any]) -> str | None:
    """Return the number of labels of a classifier, `60`, or `60 + 301 val` with a validation split; None without."""
    if summary.get("labels_total") is None:
        return None
    val = summary["labels_val"]
    return f"{summary['labels_train']:,}" + (f" + {val:,} val" if val else "")


def score(summary: dict[str, Any]) -> tuple[str, float] | None:
    """Return name and value of a run's main metric, if it has one."""
    for name in ("test/accuracy", "val/accuracy", "val/knn_accuracy"):
        if isinstance(summary.get(name), int | float):
            return name, float(summary[name])
    return None
