"""Figures of studies."""

import json
from pathlib import Path
from typing import Any

import matplotlib.axes
import pytest

from sslrun.report import plots
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
