"""Figures of evaluations and studies, each as PNG and as SVG for a page."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sslrun.base.text import percent
from sslrun.evaluation.intervals import mean_interval
from sslrun.report.style import COLORS, GRAY, INK, colors, legend, page_figure, save_figure, styled
from sslrun.run.encoders import PIXELS, SCRATCH
from sslrun.run.log import read_metrics
from sslrun.study.entry import Entry
from sslrun.study.results import EQUAL_TIME, Row
from sslrun.training.candidates import KNN, PROBE, TUNED

FROM_SCRATCH = "from scratch"
BASELINES = (SCRATCH, PIXELS)
BASELINE_STYLES = {TUNED: ("--", "o"), EQUAL_TIME: ("-.", "^"), PROBE: (":", "s"), KNN: (":", "D")}  # line and marker
MANY_CLASSES = 40  # of which only those with the largest differences are drawn
NUMBERED, DARK = 20, "#08306b"  # classes up to which a matrix has numbers; their color on light cells
MODE_NAMES = {TUNED: "finetuned", PROBE: "linear probe", KNN: "k-NN", EQUAL_TIME: "equal time"}


def name_of(initialization: str, mode: str) -> str:
    """Return the name of a network in tables and figures: `from scratch`, `simclr, linear probe`."""
    if (initialization, mode) == (SCRATCH, TUNED):
        return FROM_SCRATCH
    if initialization == SCRATCH:
        initialization = "random initialization" if mode in (PROBE, KNN) else FROM_SCRATCH
    if (initialization, mode) == (PIXELS, PROBE):
        return f"{PIXELS}, logistic regression"
    return f"{initialization}, {MODE_NAMES.get(mode, mode)}"


def _titles(names: Iterable[str], inches: float) -> tuple[list[str], float]:
    """Return titles of panels of this width, in lines that do not reach into the next one, and their further height."""
    titles = [textwrap.fill(name, int(12 * inches), break_long_words=False) for name in names]
    return titles, 0.16 * max(title.count("\n") for title in titles)


@styled()
def label_efficiency(entries: Sequence[Entry], folder: Path) -> str:
    """Draw test accuracies with 95 % CIs: over the number of labels, or at one label budget a row for each network."""
    if len({e.budget for e in entries}) == 1:
        return _at_one_budget(entries, folder)
    return _over_labels(entries, folder)


def _at_one_budget(entries: Sequence[Entry], folder: Path) -> str:
    tint = colors([name for name in dict.fromkeys(e.initialization for e in entries) if name not in BASELINES])
    names = [textwrap.fill(name_of(e.initialization, e.mode), 48, break_long_words=False) for e in entries]
    lines = sum(1 + name.count("\n") for name in names)
    figure, ((axis,),) = page_figure(1, 1, (7.4, 1.1 + 0.24 * lines))
    for i, e in enumerate(entries):
        mean = 100 * e.accuracy.mean
        ends = [[mean - 100 * e.accuracy.low], [100 * e.accuracy.high - mean]] if e.has_interval else None
        marker = BASELINE_STYLES[e.mode][1] if e.initialization in BASELINES else "o"
        axis.errorbar(
            mean, i, xerr=ends, color=tint.get(e.initialization, GRAY), marker=marker, markersize=5, capsize=3,
            linewidth=1.6, markerfacecolor="none" if e.initialization == PIXELS else None,
        )  # fmt: skip
    scratch = next((100 * e.accuracy.mean for e in entries if e.is_scratch), None)
    if scratch is not None:
        axis.axvline(scratch, color=GRAY, linewidth=0.8, linestyle=":")
    axis.set_yticks(range(len(entries)), names, fontsize=8)
    axis.set_ylim(len(entries) - 0.5, -0.5)
    budget = entries[0].budget
    more = f" + {budget.labels_val:,} validation labels" if budget.labels_val else ""
    axis.set_title(f"{entries[0].labels_train:,} labels{more}", fontsize=9)
    axis.set_xlabel("test accuracy (%)" + ", 95 % CI" * any(e.has_interval for e in entries))
    figure.tight_layout()
    return save_figure(figure, folder, "label_efficiency")


def _over_labels(entries: Sequence[Entry], folder: Path) -> str:
    """Draw a line for each network; points are shifted a little so that none hides another."""
    lines: dict[tuple[str, str, int], list[Entry]] = {}  # a line has points with as many validation labels
    for e in entries:
        lines.setdefault((e.initialization, e.mode, e.budget.labels_val), []).append(e)
    tint = colors([name for name in dict.fromkeys(e.initialization for e in entries) if name not in BASELINES])
    vals = {val for _, _, val in lines}
    figure, ((axis,),) = page_figure(1, 1, (6.4, 3.7 + 0.175 * len(lines)))
    ticks = sorted({e.labels_train for e in entries})
    margin = max(0.3, 0.08 * math.log(ticks[-1] / ticks[0]))  # of the logarithm; all shifts are within it
    width = math.log(ticks[-1] / ticks[0]) + 2 * margin
    for i, ((initialization, mode, val), points) in enumerate(lines.items()):
        name = name_of(initialization, mode) + f" + {val:,} validation labels" * (len(vals) > 1 and val > 0)
        offset = math.exp(min(0.012, 0.1 / len(lines)) * width * (i - (len(lines) - 1) / 2))
        mean = np.array([100 * p.accuracy.mean for p in points])
        ends = np.array([(p.accuracy.low, p.accuracy.high) if p.has_interval else (np.nan,) * 2 for p in points]).T
        line, marker = BASELINE_STYLES[mode] if initialization in BASELINES else ("-", "o")
        axis.errorbar(
            [p.labels_train * offset for p in points], mean,
            np.abs(100 * ends - mean) if any(p.has_interval for p in points) else None,
            color=tint.get(initialization, GRAY), label=name, marker=marker, markersize=4,
            capsize=3, linewidth=1.6, linestyle=line, markerfacecolor="none" if initialization == PIXELS else None,
        )  # fmt: skip
    axis.set_xscale("log")
    axis.set_xticks(ticks, [f"{t:,}" for t in ticks])
    axis.set_xlim(ticks[0] / math.exp(margin), ticks[-1] * math.exp(margin))
    axis.minorticks_off()
    axis.set_xlabel("labels" + (f" + {max(vals):,} validation labels" if len(vals) == 1 and max(vals) else ""))
    axis.set_ylabel("test accuracy (%)" + ", 95 % CI" * any(e.has_interval for e in entries))
    legend(axis, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.18))  # hides no point
    figure.tight_layout()
    return save_figure(figure, folder, "label_efficiency")


@styled()
def learning_curves(rows: Sequence[Row], folder: Path) -> str:
    """Draw mean validation accuracy over the steps of finetuning, one panel per label budget with a validation split.

    If the runs of a network were evaluated at different steps, only the steps common to all are drawn.
    """
    tuned = [r for r in rows if r.mode == TUNED]
    budgets = sorted({(r.labels_train, r.labels_val) for r in tuned if r.labels_val})
    figure, (axes,) = page_figure(1, len(budgets), (3.2 * len(budgets) + 0.6, 3.0))
    tint = colors(list(dict.fromkeys(r.initialization for r in tuned)))
    for axis, budget in zip(axes, budgets, strict=True):
        for initialization, color in tint.items():
            own = [r for r in tuned if (r.initialization, r.labels_train, r.labels_val) == (initialization, *budget)]
            runs = [read_metrics(Path(r.finetuned)) for r in own]
            curves = [{int(p["step"]): 100 * p["val/accuracy"] for p in run if "val/accuracy" in p} for run in runs]
            steps = sorted(set.intersection(*map(set, curves))) if curves else []
            if steps:
                axis.plot(steps, [np.mean([c[s] for c in curves]) for s in steps], color=color,
                          linewidth=1.5, linestyle="--" if initialization == SCRATCH else "-",
                          label=name_of(initialization, TUNED))  # fmt: skip
        axis.set_title("{:,} + {:,} validation labels".format(*budget), fontsize=9)
        axis.set_xlabel("step")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("validation accuracy (%)")
    legend(axes[-1], fontsize=8)
    figure.tight_layout()
    return save_figure(figure, folder, "learning_curves")


@styled()
def confusion_matrices(matrices: Mapping[str, np.ndarray], class_names: Sequence[str], title: str, folder: Path) -> str:
    """Draw confusion matrices side by side, in percent of the true class; with numbers up to 20 classes."""
    n = len(class_names)
    side = min(5.4, max(2.2, 1.2 + 0.26 * n))
    names = 0.06 * max(map(len, class_names)) if n <= 30 else 0  # inches
    titles, more = _titles(matrices, side)
    figure, (axes,) = page_figure(1, len(matrices), (side * len(matrices) + 0.9 + names, side + 0.8 + names + more))
    for i, (axis, name, counts) in enumerate(zip(axes, titles, matrices.values(), strict=True)):
        shares = counts / counts.sum(1, keepdims=True).clip(1)
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axis.set_title(name, fontsize=9)
        if n <= NUMBERED:
            for true, predicted in np.ndindex(shares.shape):
                value = shares[true, predicted]
                axis.text(
                    predicted, true, f"{100 * value:.0f}", ha="center", va="center",
                    color="white" if value > 0.5 else DARK, fontsize=min(8, 25 * side / n),
                )  # fmt: skip
        axis.set_xlabel("predicted class")
        if n <= 30:
            axis.set_xticks(range(n), class_names, rotation=90, fontsize=7)
            axis.set_yticks(range(n), class_names if i == 0 else [""] * n, fontsize=7)
        else:
            axis.set_xticks([])
            axis.set_yticks([])
    axes[0].set_ylabel("true class")
    if title:
        figure.suptitle(f"{title}: % of the images of a class", color=INK, fontsize=9)
    figure.set_layout_engine("constrained")  # tight_layout cuts off the labels of square axes
    figure.draw_without_rendering()  # their final size is known only to a second layout, when the figure is saved
    return save_figure(figure, folder, "confusion_matrices")


@styled()
def reliability(scores: dict[str, Any], folder: Path) -> str:
    """Draw reliability diagrams before and after temperature scaling.

    Args:
        scores: as returned by `metrics.scored`.
    """
    figure, (axes, below) = page_figure(2, 2, (6.6, 4.4))
    grid = axes[0].get_gridspec()
    grid.set_height_ratios([3, 1])
    for axis, bars, suffix, name in zip(axes, below, ("", "_calibrated"), ("uncalibrated", "calibrated"), strict=True):
        rows = [r for r in scores["reliability" + suffix] if r["images"]]
        total = sum(r["images"] for r in rows)
        axis.plot([0, 100], [0, 100], color=GRAY, linestyle=":", linewidth=1)
        confidence, accuracy = ([100 * r[k] for r in rows] for k in ("confidence", "accuracy"))
        axis.plot(confidence, accuracy, color=COLORS[0])
        axis.scatter(confidence, accuracy, s=16, color=COLORS[0], linewidths=0, clip_on=False)
        axis.set_title(f"{name}: ECE {percent(scores['ece' + suffix])}", fontsize=9)
        axis.set_xlim(0, 102)
        axis.set_ylim(0, 102)
        axis.tick_params(labelbottom=False)
        shares = [100 * r["images"] / total for r in rows]
        bars.bar(confidence, shares, width=4, color=COLORS[0], alpha=0.6)
        bars.set_xlim(0, 102)
        bars.set_ylim(0, 1.1 * max(shares, default=100))
        bars.set_xlabel("confidence (%)")
    axes[0].set_ylabel("accuracy (%)")
    below[0].set_ylabel("images (%)")
    figure.tight_layout()
    return save_figure(figure, folder, "reliability")


@styled()
def class_gains(gains: Mapping[str, np.ndarray], class_names: Sequence[str], title: str, folder: Path) -> str:
    """Draw the difference in recall from training from scratch for each class, in points, with 95 % CIs.

    Of many classes only those with the largest differences are drawn.

    Args:
        gains: differences in recall, `subsets x classes`, by name of the network.
    """
    n = len(class_names)
    if n > MANY_CLASSES:
        largest = np.max([np.abs(values.mean(0)) for values in gains.values()], 0)
        kept = np.sort(np.argsort(-largest, kind="stable")[:MANY_CLASSES])
        gains = {name: values[:, kept] for name, values in gains.items()}
        class_names = [class_names[k] for k in kept]
        title, n = f"{title}: the {MANY_CLASSES} of {n:,} classes with the largest differences", MANY_CLASSES
    titles, more = _titles(gains, 2.8)
    figure, (axes,) = page_figure(1, len(gains), (3.0 * len(gains) + 1.2, 1.2 + 0.22 * n + more))
    for axis in axes[1:]:
        axis.sharex(axes[0])
    tint = colors([SCRATCH, *gains])
    for i, (axis, heading, (name, values)) in enumerate(zip(axes, titles, gains.items(), strict=True)):
        intervals = [mean_interval((100 * values[:, k]).tolist()) for k in range(n)]
        low, high = (np.clip([getattr(f, end) for f in intervals], -100, 100) for end in ("low", "high"))
        means = np.array([f.mean for f in intervals])
        ends = np.nan_to_num(np.array([means - low, high - means]))
        axis.barh(range(n), [f.mean for f in intervals], color=tint[name], alpha=0.75)
        axis.errorbar([f.mean for f in intervals], range(n), xerr=ends, fmt="none", ecolor=INK, elinewidth=0.8)
        axis.axvline(0, color=INK, linewidth=0.8)
        axis.update_datalim([(-1, 0), (1, 0)])  # at least one point to each side
        axis.set_yticks(range(n), class_names if i == 0 else [""] * n, fontsize=7)
        axis.set_ylim(n - 0.4, -0.6)
        axis.set_title(heading, fontsize=9)
        axis.set_xlabel("difference in recall (points)" + ", 95 % CI" * intervals[0].known)
    figure.suptitle(title, color=INK, fontsize=9)
    figure.tight_layout()
    return save_figure(figure, folder, "class_gains")


@styled()
def embeddings(points: Mapping[str, np.ndarray], labels: np.ndarray, class_names: Sequence[str], folder: Path) -> str:
    """Draw two-dimensional embeddings side by side, colored by class.

    Args:
        points: `N x 2` by name of the network.
        labels: N class indices.
    """
    import matplotlib

    few = len(class_names) <= 20
    shades = matplotlib.colormaps["tab10" if len(class_names) <= 10 else "tab20" if few else "hsv"]
    tint = [shades(k if few else k / len(class_names)) for k in range(len(class_names))]
    titles, more = _titles(points, 2.8)
    figure, (axes,) = page_figure(1, len(points), (2.9 * len(points), (3.5 if few else 3.0) + more))
    for axis, name, xy in zip(axes, titles, points.values(), strict=True):
        for k, class_name in enumerate(class_names):
            axis.scatter(*xy[labels == k].T, s=5, color=tint[k], linewidths=0, label=class_name)
        axis.set_title(name, fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_visible(False)
    if few:
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="lower center", ncols=min(len(names), 3 * len(points)), frameon=False,
                      labelcolor=INK, fontsize=7, markerscale=2)  # fmt: skip
    figure.tight_layout(rect=(0, 0.12 if few else 0, 1, 1))
    return save_figure(figure, folder, "embeddings")
