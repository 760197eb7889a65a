"""Figures of studies."""

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.axes
import numpy as np
import pytest

from sslrun.base.output import write_json
from sslrun.report import plots, study
from sslrun.study.comparison import compared
from tests.helpers import row


def test_learning_curves_show_the_steps_common_to_all_runs_of_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[list[int], list[float]]] = []
    real = matplotlib.axes.Axes.plot

    def plot(self: Any, x: Any, y: Any, *args: Any, **kwargs: Any) -> Any:
        drawn.append((list(x), [float(v) for v in y]))
        return real(self, x, y, *args, **kwargs)

    monkeypatch.setattr(matplotlib.axes.Axes, "plot", plot)
    rows = []
    for name, points in {"a": {0: 0.1, 50: 0.4, 100: 0.6}, "b": {0: 0.3, 100: 0.8, 150: 0.9}}.items():
        (tmp_path / name).mkdir()
        lines = [json.dumps({"step": s, "val/accuracy": v}) for s, v in points.items()]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        rows.append(
            row("scratch", "finetune", labels=80, labels_train=60, labels_val=20, finetuned=str(tmp_path / name))
        )
    inside = row("scratch", "finetune", labels=60, labels_train=60, finetuned="none")  # not evaluated in its training
    svg = plots.learning_curves([*rows, inside], tmp_path)
    assert re.findall(r">([^<]* labels)<", svg) == ["60 + 20 validation labels"]
    ((steps, means),) = drawn
    assert steps == [0, 100]
    assert means == pytest.approx([20, 70])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("subsets", [2, 3])
def test_label_efficiency_has_the_intervals_of_the_entries(
    subsets: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, tuple[list[float], list[float], np.ndarray | None]] = {}
    real = matplotlib.axes.Axes.errorbar

    def errorbar(self: Any, x: Any, y: Any, yerr: Any, **keys: Any) -> Any:
        drawn[keys["label"]] = (list(x), list(y), yerr)
        return real(self, x, y, yerr, **keys)

    monkeypatch.setattr(matplotlib.axes.Axes, "errorbar", errorbar)
    rows = [
        row(initialization, "finetune", test_accuracy=base + 0.02 * s + n / 1000, subset=f"{n} {s}", labels=n + 40,
            labels_train=n, labels_val=40, pretrain_seed=0 if initialization == "simclr" else None)
        for n in (20, 100) for s in range(subsets) for initialization, base in (("scratch", 0.5), ("simclr", 0.6))
    ]  # fmt: skip
    entries = compared(rows, "finetune")
    svg = plots.label_efficiency(entries, tmp_path)
    assert list(drawn) == ["from scratch", "simclr, finetuned"]
    for initialization, (x, y, ends) in zip(("scratch", "simclr"), drawn.values(), strict=True):
        own = [e.accuracy for e in entries if e.initialization == initialization]
        assert x == pytest.approx([20, 100], rel=0.02)
        assert y == pytest.approx([100 * a.mean for a in own])
        if subsets < 3:
            assert ends is None  # no error bars, rather than some of length 0
            continue
        assert ends is not None
        low, high = (y - ends[0], y + ends[1])
        assert low == pytest.approx([100 * a.low for a in own])
        assert high == pytest.approx([100 * a.high for a in own])
        assert (low < y).all()
    assert "labels + 40 validation labels" in svg
    assert ("test accuracy (%), 95 % CI" in svg) == (subsets >= 3)


def test_budgets_with_other_validation_labels_are_lines_of_their_own(tmp_path: Path) -> None:
    rows = [row("scratch", "finetune", labels=n + val, labels_train=n, labels_val=val, label_budget=f"labels={n}")
            for n in (20, 100) for val in (0, 40)]  # fmt: skip
    svg = plots.label_efficiency(compared(rows, "finetune"), tmp_path)
    legend = re.findall(r">(from scratch[^<]*)<", svg)
    assert legend == ["from scratch", "from scratch + 40 validation labels"]
    assert ">labels<" in svg


def figure_of(monkeypatch: pytest.MonkeyPatch, draw: Callable[[], Any]) -> Any:
    """Return a figure after its layout."""
    figures: list[Any] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, *given: figures.append(figure))
    draw()
    figures[0].draw_without_rendering()
    return figures[0]


def test_at_one_label_budget_every_network_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["scratch", "simclr", "distill pretext.teacher=tf_efficientnet_lite0 pretext.weights=random.pth"]
    rows = [row(name, "finetune", labels=60, labels_train=60, test_accuracy=0.5 + 0.1 * i + 0.05 * s, subset=str(s))
            for i, name in enumerate(names) for s in range(3)]  # fmt: skip
    figure = figure_of(monkeypatch, lambda: plots.label_efficiency(compared(rows, "finetune"), Path()))
    (axis,) = figure.axes
    assert [t.get_text().replace("\n", " ") for t in axis.get_yticklabels()] == [
        "from scratch", "simclr, finetuned", f"{names[2]}, finetuned"
    ]  # fmt: skip
    means = [c.lines[0].get_xdata()[0] for c in axis.containers]
    assert means == pytest.approx([55, 65, 75])
    low, high = axis.get_xlim()
    ends = np.concatenate([bar.get_segments()[0][:, 0] for c in axis.containers for bar in c.lines[2]])
    assert low < ends.min() < ends.max() < high
    assert axis.get_tightbbox().x0 >= 0
    assert axis.get_title() == "60 labels"


def test_differences_in_recall_stay_within_100_points_and_of_many_classes_the_largest_are_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wild = {"a": np.array([[0.9, -0.9, 0.0]] * 2 + [[-0.9, 0.9, 0.1]]), "b": np.zeros((3, 3))}
    figure = figure_of(monkeypatch, lambda: plots.class_gains(wild, list("xyz"), "60 labels", Path()))
    first, second = figure.axes
    assert first.get_xlim() == second.get_xlim()
    ends = np.concatenate([bar.get_segments()[i][:, 0] for bar in first.containers[1].lines[2] for i in range(3)])
    assert (np.abs(ends) <= 100).all()
    values = np.zeros((3, 1000))
    values[:, 10:1000:25] = 0.5
    monkeypatch.undo()
    figure = figure_of(
        monkeypatch, lambda: plots.class_gains({"a": values}, [f"c{k}" for k in range(1000)], "60 labels", Path())
    )
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == [f"c{k}" for k in range(10, 1000, 25)]
    assert "the 40 of 1,000 classes" in figure.get_suptitle()


@pytest.mark.parametrize(("classes", "numbers"), [(1, 1), (20, 400), (21, 0)])
def test_a_confusion_matrix_has_numbers_up_to_20_classes(
    classes: int, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = np.eye(classes, dtype=int) * 3
    names = [str(k) for k in range(classes)]
    figure = figure_of(monkeypatch, lambda: plots.confusion_matrices({"a": counts}, names, "60 labels", Path()))
    texts = [t.get_text() for t in figure.axes[0].texts]
    assert len(texts) == numbers
    assert texts.count("100") == (classes if numbers else 0)


NAMES = tuple(f"{name} train.epochs=20 train.batch_size=64, linear probe" for name in ("simclr", "byol", "rotation"))
PANELS: dict[str, Callable[[], str]] = {
    "confusion": lambda: plots.confusion_matrices({n: np.eye(2) for n in NAMES}, ["a", "b"], "30 labels", Path()),
    "gains": lambda: plots.class_gains({n: np.zeros((3, 2)) for n in NAMES}, ["a", "b"], "30 labels", Path()),
    "map": lambda: plots.embeddings({n: np.eye(2) for n in NAMES}, np.arange(2), ["a", "b"], Path()),
}


@pytest.mark.parametrize("kind", PANELS)
def test_long_names_of_networks_do_not_reach_into_the_next_panel(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = figure_of(monkeypatch, PANELS[kind])
    first, long, last = (axis.title.get_window_extent() for axis in figure.axes)
    assert first.x1 < long.x0
    assert long.x1 < last.x0
    assert long.y1 <= figure.bbox.y1
    assert min(axis.get_tightbbox().y0 for axis in figure.axes) >= 0


@pytest.mark.parametrize("budgets", [(30, 60), (30, 300, 50000)])
def test_all_points_are_in_the_axis_and_the_legend_is_not(
    budgets: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"pretext {i}" for i in range(12)]
    rows = [row(name, "finetune", labels=n, labels_train=n) for n in budgets for name in names]
    figure = figure_of(monkeypatch, lambda: plots.label_efficiency(compared(rows, "finetune"), Path()))
    (axis,) = figure.axes
    low, high = axis.get_xlim()
    x = np.array([line.get_xdata() for line in axis.get_lines() if len(line.get_xdata()) == len(budgets)])
    assert low < x.min()
    assert x.max() < high
    assert (x[:, :-1].max(0) < x[:, 1:].min(0)).all()  # budgets do not mix
    legend = axis.get_legend().get_window_extent()
    assert legend.y1 < axis.xaxis.get_tightbbox().y0
    assert legend.y0 >= 0


def test_equal_accuracies_have_no_error_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[np.ndarray] = []
    real = matplotlib.axes.Axes.errorbar

    def errorbar(self: Any, x: Any, y: Any, xerr: Any, **keys: Any) -> Any:
        ends.append(xerr)
        return real(self, x, y, xerr=xerr, **keys)

    monkeypatch.setattr(matplotlib.axes.Axes, "errorbar", errorbar)
    rows = [row("scratch", "finetune", test_accuracy=1.0, subset=s) for s in "abc"]
    assert "95 % CI" not in plots.label_efficiency(compared(rows, "finetune"), tmp_path)
    assert ends == [None]


def test_the_names_of_a_confusion_matrix_are_inside_the_figure(tmp_path: Path) -> None:
    counts = {name: np.eye(10) for name in ("from scratch", "simclr, auto")}
    svg = plots.confusion_matrices(counts, [str(k) for k in range(10)], "30 labels", tmp_path)
    height = float(svg[svg.index('viewBox="0 0 ') :].split('"')[1].split()[3])
    bottoms = [float(y) for y in re.findall(r'y="([\d.]+)"[^>]*>predicted class</text>', svg)]
    assert len(bottoms) == 2
    assert max(bottoms) < height - 1  # the letters end below this line


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("subsets", [1, 3])
def test_classes_without_test_images_have_no_bar(subsets: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[list[float]] = []
    real = matplotlib.axes.Axes.barh

    def barh(self: Any, y: Any, width: Any, *args: Any, **kwargs: Any) -> Any:
        bars.append(list(width))
        return real(self, y, width, *args, **kwargs)

    monkeypatch.setattr(matplotlib.axes.Axes, "barh", barh)
    gains = {"simclr": np.array([[0.1, np.nan, -0.2]] * subsets)}
    svg = plots.class_gains(gains, ["a", "b", "c"], "", tmp_path)
    ((a, b, c),) = bars
    assert (a, c) == pytest.approx((10, -20))
    assert math.isnan(b)
    assert "nan" not in svg.lower()


def test_recall_without_test_images_is_not_a_number(tmp_path: Path) -> None:
    for name, recall in (("a", [0.5, None]), ("b", [0.75, None])):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "report.json", {"classes": [{"class": "x", "recall": r} for r in recall]})
    a, b = (row("simclr", "finetune", evaluated=str(tmp_path / name)) for name in ("a", "b"))
    assert np.array_equal(study._recalls([b], [a]), [[0.25, np.nan]], equal_nan=True)


def test_recalls_are_compared_by_label_subset_and_not_by_seed(tmp_path: Path) -> None:
    """With all labels there is one subset, on which runs are no pairs and several of them no sample of subsets."""
    for i in range(4):
        (tmp_path / str(i)).mkdir()
        write_json(tmp_path / str(i) / "report.json", {"classes": [{"class": "x", "recall": i / 4}]})
    runs = [row("simclr", "finetune", subset="a", seed=i, evaluated=str(tmp_path / str(i))) for i in range(4)]
    assert np.array_equal(study._recalls(runs[2:], runs[:2]), [[0.5]])
    other = dataclasses.replace(runs[3], subset="b")
    assert np.array_equal(study._recalls([runs[2], other], [runs[0], dataclasses.replace(runs[1], subset="b")]),
                          [[0.5], [0.5]])  # fmt: skip
    assert len(study._recalls([other], runs[:2])) == 0
