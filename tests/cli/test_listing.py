"""`sslrun runs`."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.helpers import Cli


def test_runs_lists_all_runs(in_world: Path, cli: Cli) -> None:
    rows = json.loads(cli("runs", "--format", "json").out)
    assert [r["stage"] for r in rows] == ["pretrain", "pretrain", "finetune"]
    assert [r["pretext"] for r in rows] == ["rotation", "simclr", "simclr"]
    assert [r["labels"] for r in rows] == [None, None, rows[2]["labels"]]
    assert re.fullmatch(r"\d+", rows[2]["labels"])
    assert re.fullmatch(r"val/accuracy [01]\.\d+", rows[2]["score"])
    table = cli("runs").out
    assert "rotation" in table
    assert re.search(r"val accuracy \d+\.\d %", table)
    assert "val knn accuracy" in table
    assert cli("runs", "finetune", "--format", "csv").out.count("\n") == 2
    assert cli("runs", "format=csv", "finetune").out == cli("runs", "finetune", "--format", "csv").out
    assert cli("runs", "format=csv", "format=json").code == 1
    shutil.rmtree("outputs")
    empty = cli("runs")
    assert (empty.code, empty.out) == (0, "")
    assert "No runs" in empty.err


def test_no_color_leaves_colors_out(world: Path) -> None:
    """A failed run is red where colors are forced; bold stays."""
    run = Path("outputs/pretrain/2026-01-01_00-00-00-000000")
    shutil.copytree(next((world / "outputs/pretrain").iterdir()), run)
    content = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**content, "status": "failed"}))
    red = []
    for given in ({}, {"NO_COLOR": "1"}):
        environment = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm", **given}
        command = [sys.executable, "-m", "sslrun", "runs"]
        out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        assert "failed" in out.stdout + out.stderr
        red.append("\x1b[31m" in out.stdout + out.stderr)
    assert red == [True, False]
