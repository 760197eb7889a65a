import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from sslrun.base.console import start_logging
from sslrun.report import plots, style
from sslrun.report.sheets import contact_sheet


@pytest.mark.slow
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


@pytest.mark.parametrize(("name", "shown"), [("写真 flower", ""), (chr(0x12000), chr(0x12000)), ("thé Ω ж", "")])
def test_characters_that_no_font_has_are_named_once(
    name: str, shown: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    start_logging()
    if shown == "" and not style._installed() and not name.isascii() and ord(max(name)) > 0x2E80:
        pytest.skip("no font with Chinese characters is installed")
    style._reported.clear()
    for folder in ("a", "b"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            plots.confusion_matrices({"scratch": np.eye(2)}, [name, "b"], "30 labels", tmp_path / folder)
    expected = f"Figures show boxes for {shown}: install a font with these characters, such as Noto Sans CJK\n"
    assert capfd.readouterr().err == (expected if shown else "")
    assert contact_sheet([[(np.zeros((4, 4, 3), np.uint8), name)]]).size == (112, 123)
