"""The figures of a report."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.axes
import pytest

from sslrun.report import plots
from tests.conftest import row


def test_learning_curves_show_the_steps_that_all_runs_of_a_network_have(
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


def test_the_look_of_figures_is_nobody_elses(tmp_path: Path) -> None:
    """In a process of its own: importing and drawing leaves matplotlib's settings as they are."""
    script = """
import matplotlib
import matplotlib.figure
before = dict(matplotlib.rcParams)
from pathlib import Path
import numpy as np
from sslrun.report import embedding_map, evaluation, plots, study, style, training
assert dict(matplotlib.rcParams) == before
drawn = []

class Figure(matplotlib.figure.Figure):
    def savefig(self, *args, **kwargs):
        drawn.append({k: matplotlib.rcParams[k] for k in style.LOOK})
        super().savefig(*args, **kwargs)

matplotlib.figure.Figure = Figure
plots.confusions({"a network": np.eye(2)}, ["$1", "b"], "30 labels", Path("figures"))
plots.maps({"a network": np.eye(2)}, np.array([0, 1]), ["$1", "b"], Path("figures"))
assert drawn == [style.LOOK] * 4, drawn  # an SVG and a PNG each
assert dict(matplotlib.rcParams) == before
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == [
        "confusion_matrices.png", "confusion_matrices.svg", "embeddings.png", "embeddings.svg",
    ]  # fmt: skip
