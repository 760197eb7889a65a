"""The run that `run=` names, or the newest. torch is not imported here."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.base.text import duration, percent, with_article
from sslrun.config.commands import FOR_ENCODER, WITH_CLASSIFIER, typed
from sslrun.run.encoders import SCRATCH
from sslrun.run.find import BEST, FoundRun, find, labels_text, newest, read_summary

ENOUGH = 20  # images of an accuracy with which a run is named


def find_run(run: str, stages: Sequence[str] = WITH_CLASSIFIER, trained: bool = False) -> Path:
    """Return the directory of a run of one of these stages.

    Args:
        run: a run directory, or `latest`, the newest finished run.
        trained: `latest` is the newest that did not start from scratch, if there is one.

    Raises:
        UserError: there is no such run, or it is of another stage.
    """
    directory, summary = named_run(run, stages, trained)
    if run == "latest":
        if trained and from_scratch(summary):
            log.info("No finished run started from pretrained weights.")
        log.info("Using %s: %s", directory, described(summary))
        if better := _better(directory, summary):
            log.info("%s has a higher accuracy: %s. To use it: run=%s", better[0], described(better[1]), better[0])
    elif summary["status"] != "finished":
        _refuse_without_classifier(directory, summary)
        log.warning("%s did not finish (%s): using its best checkpoint so far", run, summary["status"])
    return directory


def from_scratch(summary: Mapping[str, Any]) -> bool:
    """Return whether a run is a classifier whose network was trained on labels alone, or not at all."""
    return summary["stage"] in WITH_CLASSIFIER and SCRATCH in (summary.get("init"), summary.get("chosen"))


def described(summary: Mapping[str, Any], now: datetime | None = None) -> str:
    """Return what a finished run is: initialization, labels, score and how it was counted, and age.

    Args:
        now: the current time, in any time zone.
    """
    parts = [str(summary.get("pretext") or summary.get("init") or summary["stage"])]
    if chosen := summary.get("chosen"):
        parts[0] = f"{parts[0]}, {chosen}" if chosen != parts[0] else parts[0]
    if labels := labels_text(summary):
        parts.append(f"{labels} labels")
    value = {k: v for k in ("val/accuracy", "val/knn_accuracy") if isinstance(v := summary.get(k), int | float)}
    if "val/accuracy" in value:
        how = "on validation" if summary.get("labels_val") else "out of fold"
        parts.append(f"accuracy {percent(value['val/accuracy'])} {how}")
    elif "val/knn_accuracy" in value:
        parts.append(f"kNN accuracy {percent(value['val/knn_accuracy'])}")
    with suppress(TypeError, ValueError, KeyError):
        age = (now or datetime.now(UTC)) - datetime.fromisoformat(summary["started"])
        parts.append(f"started {duration(max(age.total_seconds(), 1))} ago")
    return ", ".join(parts)


def _better(directory: Path, summary: Mapping[str, Any]) -> FoundRun | None:
    """Return the classifier of the same images whose accuracy, counted in the same way, is the highest and higher."""

    def accuracy(of: Mapping[str, Any]) -> float:
        value = of.get("val/accuracy")
        same = all(of.get(k) == summary.get(k) for k in ("data_fingerprint", "stage"))
        counted_alike = bool(of.get("labels_val")) == bool(summary.get("labels_val"))
        enough = of is summary or of.get("val/images", 0) >= ENOUGH
        return float(value) if same and counted_alike and enough and isinstance(value, int | float) else -1.0

    if summary["stage"] not in WITH_CLASSIFIER or accuracy(summary) < 0:
        return None
    others = [r for r in find(WITH_CLASSIFIER) if r[1]["status"] == "finished"]
    best = max(others, key=lambda r: accuracy(r[1]))
    return best if accuracy(best[1]) > accuracy(summary) else None


def _refuse_without_classifier(directory: Path, summary: dict[str, Any]) -> None:
    """Raise if an unfinished finetuning has no classifier yet."""
    if summary["stage"] in WITH_CLASSIFIER and not (directory / BEST).exists():
        again = "run it again"
        if summary.get("resumable"):
            again = f"continue it with {typed(summary['stage'])} resume={directory}"
        raise UserError(f"{directory} has not finished ({summary['status']}) and has no classifier yet: {again}")


def named_run(run: str, stages: Sequence[str] = WITH_CLASSIFIER, trained: bool = False) -> FoundRun:
    """Return the directory and summary of a run, as `find_run` does, without logging."""
    if run == "latest":
        finished = [r for r in find(stages) if r[1]["status"] == "finished"]
        encoders = [r for r in finished if trained and not from_scratch(r[1])]
        latest = newest(encoders or finished)
        if latest is None:
            raise UserError(f"no finished {' or '.join(stages)} run in outputs: start one with {typed(stages[0])}")
        return latest
    summary = read_summary(Path(run))
    if summary["stage"] not in stages:
        train_one = f"train one with {typed(WITH_CLASSIFIER[0])} init={run}"
        hint = train_one if summary["stage"] in FOR_ENCODER else "use another run"
        missing = "network of its own" if set(FOR_ENCODER) <= set(stages) else "classifier"
        raise UserError(f"{run} is {with_article(summary['stage'])} run, without a {missing}: {hint}")
    return Path(run), summary
