"""The page of an evaluation: `report.html`, one file that holds all it shows."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from sslrun.files import write_text
from sslrun.report import plots
from sslrun.report.page import rendered
from sslrun.run import Run


def publish(own: Run, scores: dict[str, Any], directory: Path, dataset: str, images: int) -> Path:
    """Write `report.html` and its figures into an evaluation's directory.

    Args:
        scores: as `metrics.scored` returns them, with `against` and `stages` where they were asked for.
        directory: of the classifier's run.
        images: how many were tested.
    """
    folder, names = own.directory / "figures", [c["class"] for c in scores["classes"]]
    matrix = np.array(scores["confusion_matrix"])
    mistakes = folder / "mistakes.png"
    text = rendered(
        "evaluation.html.jinja",
        title=f"{100 * scores['accuracy']:.1f} % right",
        subtitle=f"{directory} on {images:,} test pictures of {dataset}",
        scores=scores,
        numbers=list(_numbers(scores)),
        reliability=Markup(plots.reliability(scores, folder)),
        confusion=Markup(plots.confusions({"parts of each class": matrix}, names, "", folder)),
        matrix=matrix.tolist() if len(names) <= 30 else None,
        mistakes=base64.b64encode(mistakes.read_bytes()).decode() if mistakes.is_file() else "",
        rival=said_rival(scores["against"]) if "against" in scores else "",
        command=own.again(),
    )
    path = own.directory / "report.html"
    write_text(path, text)
    return path


def said_rival(rival: dict[str, Any]) -> str:
    """Say in words what a paired comparison of two classifiers shows."""
    points, p = 100 * rival["difference"], rival["p"]
    ends = "" if rival["interval"] is None else " ({:.1f} to {:.1f})".format(*(100 * x for x in rival["interval"]))
    word = "no difference shown" if p >= 0.05 else "better" if points > 0 else "worse"
    return (
        f"{word}: {points:+.1f} points{ends} against {rival['run']}, right alone {rival['only_this']} and "
        f"{rival['only_rival']} times, p = {p:.2g} (McNemar, exact)"
    )


def _numbers(scores: dict[str, Any]) -> Any:
    """Yield the rows of the table: a name, its value, and what it means."""
    if scores["accuracy_interval"] is not None:
        low, high = (100 * x for x in scores["accuracy_interval"])
        yield "accuracy", f"{100 * scores['accuracy']:.1f} % ({low:.1f} to {high:.1f})", "95 % bootstrap over pictures"
    for name, key in (("precision", "precision_macro"), ("recall", "recall_macro"), ("F1", "f1_macro")):
        yield name, f"{100 * scores[key]:.1f} %", "mean over classes"
    if "top5_accuracy" in scores:
        yield "top 5", f"{100 * scores['top5_accuracy']:.1f} %", "the class is among the five likeliest"
    after = f"with temperature {scores['temperature']:.2f}, fitted on validation"
    yield "log-loss", f"{scores['nll']:.3f}, {scores['nll_calibrated']:.3f}", f"nats; the second {after}"
    gaps = f"{100 * scores['ece']:.1f}, {100 * scores['ece_calibrated']:.1f}"
    yield "calibration error", gaps, "points between confidence and accuracy; likewise"
