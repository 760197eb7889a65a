"""Reports of an evaluation: the page, the confusion matrix and the table of per-class metrics."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from rich.table import Table
from rich.text import Text

from sslrun.base.console import ERR, log
from sslrun.base.files import write_text
from sslrun.base.output import Row, new_table
from sslrun.base.text import counted, interval, listed, metric, percent, percent_or_dash
from sslrun.evaluation.intervals import MIN_GROUPS
from sslrun.evaluation.metrics import MANY_IMAGES
from sslrun.report import plots
from sslrun.report.html import render
from sslrun.run.run import Run

NUMBERS = ("precision", "recall", "f1", "images", "predicted")  # numeric columns of the per-class table
FEW_IMAGES = 5  # of a class: with fewer, its recall is hardly known


def print_classification(result: dict[str, Any], source: Path, table: bool) -> None:
    """Log the accuracy; with `table`, print metrics by class to stderr."""
    log.info("%s: %s (%s)", source, metric("test/accuracy", result["accuracy"]), accuracy_text(result))
    if table:
        ERR.print(_classes_table(result))


def log_small_classes(classes: Sequence[Row]) -> None:
    """Log which classes have few or no test images."""
    if missing := missing_text(classes):
        log.info("%s", missing)
    if few := few_text(classes):
        log.warning("%s", few)


def accuracy_text(result: dict[str, Any]) -> str:
    """Return the interval of the accuracy, and how it considers groups, as part of a sentence."""
    parts = [] if result["accuracy_interval"] is None else [f"95 % CI {interval(*result['accuracy_interval'])}"]
    return ", ".join([*parts, _groups_text(result)] if "groups" in result else parts)


def _groups_text(result: dict[str, Any]) -> str:
    if result["effective_images"] is None:
        return f"no CI: {counted(result['groups'], 'group')} of dependent images, at least {MIN_GROUPS} are needed"
    return f"images of one group count as dependent: effective n = {result['effective_images']:,.0f}"


def missing_text(classes: Sequence[Row]) -> str:
    """Return a sentence on the classes without test images; empty if there are none."""
    names = [c["class"] for c in classes if not c["images"]]
    if not names:
        return ""
    have, them = ("has", "it") if len(names) == 1 else ("have", "them")
    which = f"{len(names)} of {len(classes)} classes {have} no test images: {listed(names)}"
    return f"{which}; the balanced accuracy leaves {them} out."


def few_text(classes: Sequence[Row]) -> str:
    """Return a warning of the classes with fewer than five test images; empty if there are none."""
    few = [c for c in classes if 0 < c["images"] < FEW_IMAGES]
    if not few:
        return ""
    if len(few) == 1:
        (c,) = few
        ends = "" if c["recall_low"] is None else f" (95 % CI {interval(c['recall_low'], c['recall_high'])})"
        return f"{counted(c['images'], 'test image')} of class {c['class']}: too few to measure its recall{ends}."
    names = [f"{c['class']} ({c['images']})" for c in few]
    which = f"{len(few)} of {len(classes)} classes have fewer than {FEW_IMAGES} test images"
    return f"{which}, too few to measure recall: {listed(names)}."


def _classes_table(result: dict[str, Any]) -> Table:
    table = new_table(("class", *NUMBERS), NUMBERS)
    for row in result["classes"]:
        numbers = [percent_or_dash(row[k]) for k in ("precision", "recall", "f1")]
        table.add_row(Text(row["class"]), *numbers, str(row["images"]), str(row["predicted"]))
    table.add_section()
    macro = [percent(result[k]) for k in ("precision_macro", "balanced_accuracy", "f1_macro")]
    total = str(sum(r["images"] for r in result["classes"]))
    table.add_row("macro average", *macro, total, total)
    return table


def publish(own: Run, scores: dict[str, Any], directory: Path, dataset: str, images: int) -> Path:
    """Write `report.html` and its figures to an evaluation's run directory.

    Args:
        own: the evaluation's run.
        scores: as returned by `metrics.scored`, with `against` and `stages` if requested.
        directory: run directory of the classifier.
        dataset: its description.
        images: number of test images.

    Returns:
        The path of the page.
    """
    folder, names = own.directory / "figures", [c["class"] for c in scores["classes"]]
    matrix = np.array(scores["confusion_matrix"])
    mistakes = folder / "mistakes.png"
    text = render(
        "evaluation.html.jinja",
        title=f"Accuracy {percent(scores['accuracy'])}",
        subtitle=f"{directory} on {counted(images, 'test image')} of {dataset}",
        scores=scores,
        numbers=list(_numbers(scores)),
        reliability=Markup(plots.reliability(scores, folder)),
        confusion=Markup(plots.confusion_matrices({"% of the images of a class": matrix}, names, "", folder)),
        matrix=matrix.tolist() if len(names) <= 30 else None,
        mistakes=base64.b64encode(mistakes.read_bytes()).decode() if mistakes.is_file() else "",
        missing=missing_text(scores["classes"]),
        few=few_text(scores["classes"]),
        rival=comparison_text(scores["against"]) if "against" in scores else "",
        sign=_result(scores["against"]) if "against" in scores else "",
        intervals=GROUPED if "groups" in scores else INDEPENDENT,
        excess=excess_text(scores["validation_excess"]) if "validation_excess" in scores else "",
        command=own.command,
    )
    own.log.image("confusion_matrices", folder / "confusion_matrices.png")
    path = own.directory / "report.html"
    write_text(path, text)
    return path


REASONS = {
    "no_groups": "if several images show the same object, as frames of a video do, set dataset.groups, so that no "
    "object is in both training and validation (docs/data.md, Groups)",
    "few_groups": "dataset.groups is set already, so the test images differ from the training images, or there are few "
    "groups, which these intervals do not consider",
    "other_images": "the test images differ from the training images",
}


def excess_text(excess: dict[str, Any]) -> str:
    """Return in a sentence that validation accuracy exceeds test accuracy, and the likely reason."""
    val, test = (
        f"{percent(excess[k]['accuracy'])} ({counted(excess[k]['images'], 'image')}, 95 % CI "
        f"{interval(*excess[k]['interval'])})"
        for k in ("validation", "test")
    )
    return (
        f"validation accuracy {val} exceeds test accuracy {test} by more than both intervals allow: "
        f"{REASONS[excess['reason']]}"
    )


INDEPENDENT = "95 % CIs of precision and recall: Wilson score intervals over images."
GROUPED = (
    "95 % CIs of precision and recall consider that images of one group are dependent; a class whose images belong to "
    f"fewer than {MIN_GROUPS} groups has none."
)


def _result(rival: dict[str, Any]) -> str:
    if rival["p"] is None:
        return "undecided"
    return "no difference shown" if rival["p"] >= 0.05 else "better" if rival["difference"] > 0 else "worse"


def comparison_text(rival: dict[str, Any]) -> str:
    """Return the result of a paired comparison of two classifiers in two sentences."""
    ends = "" if rival["interval"] is None else f" (95 % CI {interval(*rival['interval'])})"
    if rival["p"] is None:
        test = f"no test: the differences of the {counted(rival['groups'], 'group')} of dependent images do not vary"
    elif rival["groups"] is None:
        test = f"p = {rival['p']:.2g} (McNemar's mid-p test)"
    else:
        test = f"p = {rival['p']:.2g} (t test over {counted(rival['groups'], 'group')} of dependent images)"
    return (
        f"{_result(rival)}: accuracy {100 * rival['difference']:+.1f} points{ends} compared with {rival['run']}; "
        f"only this classifier correct: {rival['only_this']}, only the other: {rival['only_rival']}; {test}. "
        "This compares two trained classifiers, not two methods: other labels or seeds may give another result."
    )


def _numbers(scores: dict[str, Any]) -> Any:
    """Yield the rows of the table of metrics: name, value and explanation."""
    how = "95 % CI: Wilson score interval over images" if "groups" not in scores else _groups_text(scores)
    yield "accuracy", _with_interval(scores["accuracy"], scores["accuracy_interval"]), how
    yield (
        "balanced accuracy",
        percent(scores["balanced_accuracy"]),
        "macro average of recall, over classes with test images",
    )
    yield (
        "precision",
        percent(scores["precision_macro"]),
        "macro average over classes with test images or predictions; 0 without predictions",
    )
    of_what = "images, stratified by class" if "groups" not in scores else "groups"
    few = f"; approximate, since a class has fewer than {MANY_IMAGES} test images" * scores["f1_macro_approximate"]
    drawn = f"; 95 % CI: bootstrap over {of_what}{few}" if scores["f1_macro_interval"] else ""
    yield (
        "F1",
        _with_interval(scores["f1_macro"], scores["f1_macro_interval"]),
        f"macro average over classes with test images or predictions{drawn}",
    )
    if "top5_accuracy" in scores:
        yield "top-5 accuracy", percent(scores["top5_accuracy"]), "true class among the five most probable ones"
    scaling = f"after temperature scaling (T = {scores['temperature']:.2f}, fitted without test images)"
    for suffix, when, again in (("", "", ""), ("_calibrated", f", {scaling}", ", likewise")):
        name = suffix.replace("_", ", ")
        yield f"log loss{name}", f"{scores['nll' + suffix]:.3f}", f"in nats{when}"
        error = "mean difference between confidence and accuracy, in 15 bins"
        yield f"expected calibration error (ECE){name}", percent(scores["ece" + suffix]), error + again


def _with_interval(value: float, ends: tuple[float, float] | None) -> str:
    return percent(value) if ends is None else f"{percent(value)} ({interval(*ends)})"
