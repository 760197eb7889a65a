"""Figures of studies."""

import json
import math
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
        rows.append(row("scratch", "finetune", labels=60, finetuned=str(tmp_path / name)))
    plots.learning_curves(rows, tmp_path)
    ((steps, means),) = drawn
    assert steps == [0, 100]
    assert means == pytest.approx([20, 70])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("subsets", [2, 3])
def test_label_efficiency_has_the_intervals_of_the_entries(
    subsets: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, tuple[list[float], list[float], np.ndarray]] = {}
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
        low, high = (y - ends[0], y + ends[1])
        known = subsets >= 3
        assert low == pytest.approx([100 * (a.low if known else a.mean) for a in own])
        assert high == pytest.approx([100 * (a.high if known else a.mean) for a in own])
        assert (low < y).all() == known
    assert "labels + 40 validation labels" in svg
    assert ("test accuracy (%), 95 % CI" in svg) == (subsets >= 3)


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
