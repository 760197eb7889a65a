import subprocess
import sys
from pathlib import Path


def test_the_style_of_figures_leaves_rc_params_unchanged(tmp_path: Path) -> None:
    """In a separate process: importing and drawing do not change matplotlib's settings."""
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
        drawn.append({k: matplotlib.rcParams[k] for k in style.RC_PARAMS})
        super().savefig(*args, **kwargs)

matplotlib.figure.Figure = Figure
plots.confusion_matrices({"a network": np.eye(2)}, ["$1", "b"], "30 labels", Path("figures"))
plots.embeddings({"a network": np.eye(2)}, np.array([0, 1]), ["$1", "b"], Path("figures"))
assert drawn == [style.RC_PARAMS] * 4, drawn  # an SVG and a PNG each
assert dict(matplotlib.rcParams) == before
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == [
        "confusion_matrices.png", "confusion_matrices.svg", "embeddings.png", "embeddings.svg",
    ]  # fmt: skip
