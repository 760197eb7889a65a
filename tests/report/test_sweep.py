import csv
import json
import re
from pathlib import Path

from tests.helpers import QUICK, Cli, summary


def test_a_sweep_averages_over_seeds_only(in_world: Path, cli: Cli) -> None:
    """Not over learning rates, nor over initial weights from different runs."""
    rates = ("train.learning_rate=0.001,0.01", "seed=0,1", "train.steps=2", "train.evaluations=1")
    assert cli("finetune", "-m", "mode=finetune", *rates, *QUICK).code == 0
    sweep = next(Path("outputs/finetune").glob("*/sweep.csv")).parent
    answer = cli("evaluate", f"run={sweep}", "stages=false", *QUICK)
    table = [line.split() for line in answer.err.splitlines() if line.split() and line.split()[-1] == "2"]
    assert re.search(r"test accuracy +SD ", answer.err)
    assert all(re.fullmatch(r"\d+\.\d", line[-4]) and line[-3] == "%" for line in table)
    assert {r for line in table for r in line if r in ("0.001", "0.01")} == {"0.001", "0.01"}
    rows = list(csv.DictReader(next(Path("outputs/evaluate").glob("*/sweep.csv")).open()))
    assert [r["of_run"] for r in rows] == [f"{sweep}/{i}" for i in range(4)]
    (sweep / "1/summary.json").write_text(json.dumps({**summary(sweep / "1"), "status": "failed"}))
    assert cli("evaluate", f"run={sweep}", "stages=false", *QUICK).code == 0
    assert len(list(csv.DictReader(max(Path("outputs/evaluate").glob("*/sweep.csv")).open()))) == 3
