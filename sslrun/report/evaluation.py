"""An evaluation: its page, the confusion matrix, the table by class."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from rich.table import Table
from rich.text import Text

from sslrun.base.console import ERR, log
from sslrun.base.files import write_text
from sslrun.base.output import new_table
from sslrun.base.text import interval, metric, percent
from sslrun.report import plots
from sslrun.report.html import rendered
from sslrun.report.style import new_figure, styled
from sslrun.runs.run import Run

NUMBERS = ("precision", "recall", "f1", "images")  # columns of the table by class


@styled()
def confusion_figure(run: Run, counts: list[list[int]], class_names: list[str]) -> None:
    """Draw the confusion matrix: shades are parts of a row, numbers are pictures."""
    n = len(class_names)
    side = min(14.0, 2.2 + 0.45 * n)
    figure, ((axis,),) = new_figure(1, 1, (side, side))
    matrix = torch.tensor(counts, dtype=torch.float)
    axis.imshow((matrix / matrix.sum(1, keepdim=True).clamp(min=1)).numpy(), cmap="Blues", vmin=0, vmax=1)
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    if n <= 60:
        axis.set_xticks(range(n), class_names, rotation=90)
        axis.set_yticks(range(n), class_names)
    if n <= 25:
        for i, row in enumerate(counts):
            for j, count in enumerate(row):
                dark = count > 0.5 * max(1, sum(row))
                axis.text(
                    j,
                    i,
                    count or "",
                    ha="center",
                    va="center",
                    color="white" if dark else "black",
                    fontsize=8,
                )
    figure.tight_layout()
    path = run.figure("confusion_matrix")
    figure.savefig(path)
    run.log.image("confusion_matrix", path)


def print_classification(result: dict[str, Any], source: Path, table: bool) -> None:
    """Say the accuracy, and if asked for print the table of the classes, on standard error."""
    ends = "" if result["accuracy_interval"] is None else f" (95 % CI {interval(*result['accuracy_interval'])})"
    log.info("%s%s of %s", metric("test/accuracy", result["accuracy"]), ends, source)
    if table:
        ERR.print(_classes_table(result))


def _classes_table(result: dict[str, Any]) -> Table:
    table = new_table(("class", *NUMBERS), NUMBERS)
    for row in result["classes"]:
        numbers = [percent(row[k]) for k in ("precision", "recall", "f1")]
        table.add_row(Text(row["class"]), *numbers, str(row["images"]))
    table.add_section()
    macro = [percent(result[k]) for k in ("precision_macro", "recall_macro", "f1_macro")]
    table.add_row("macro mean", *macro, str(sum(r["images"] for r in result["classes"])))
    return table


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
        title=f"Accuracy {percent(scores['accuracy'])}",
        subtitle=f"{directory} on {images:,} test pictures of {dataset}",
        scores=scores,
        numbers=list(_numbers(scores)),
        reliability=Markup(plots.reliability(scores, folder)),
        confusion=Markup(plots.confusions({"parts of each class": matrix}, names, "", folder)),
        matrix=matrix.tolist() if len(names) <= 30 else None,
        mistakes=base64.b64encode(mistakes.read_bytes()).decode() if mistakes.is_file() else "",
        rival=rival_text(scores["against"]) if "against" in scores else "",
        command=own.command,
    )
    path = own.directory / "report.html"
    write_text(path, text)
    return path


def rival_text(rival: dict[str, Any]) -> str:
    """Say in words what a paired comparison of two classifiers shows."""
    points, p = 100 * rival["difference"], rival["p"]
    ends = "" if rival["interval"] is None else f" ({interval(*rival['interval'])})"
    word = "no difference shown" if p >= 0.05 else "better" if points > 0 else "worse"
    return (
        f"{word}: {points:+.1f} points{ends} against {rival['run']}, right alone {rival['only_this']} and "
        f"{rival['only_rival']} times, p = {p:.2g} (McNemar, exact)"
    )


def _numbers(scores: dict[str, Any]) -> Any:
    """Yield the rows of the table: a name, its value, and what it means."""
    if scores["accuracy_interval"] is not None:
        yield (
            "accuracy",
            f"{percent(scores['accuracy'])} ({interval(*scores['accuracy_interval'])})",
            "95 % CI, bootstrap over images",
        )
    for name, key in (("precision", "precision_macro"), ("recall", "recall_macro"), ("F1", "f1_macro")):
        yield name, percent(scores[key]), "mean over classes"
    if "top5_accuracy" in scores:
        yield "top 5", percent(scores["top5_accuracy"]), "the class is among the five likeliest"
    after = f"with temperature {scores['temperature']:.2f}, fitted on validation"
    yield "log-loss", f"{scores['nll']:.3f}, {scores['nll_calibrated']:.3f}", f"nats; the second {after}"
    gaps = f"{percent(scores['ece'])}, {percent(scores['ece_calibrated'])}"
    yield "calibration error", gaps, "between confidence and accuracy; likewise"
