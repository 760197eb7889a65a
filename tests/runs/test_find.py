import json
from pathlib import Path

from sslrun.runs.find import find, find_run
from tests.helpers import QUICK, Cli, runs, summary


def test_latest_skips_runs_that_did_not_finish(in_world: Path, cli: Cli) -> None:
    newest = runs("pretrain")[-1]
    answer = summary(newest)
    (newest / "summary.json").write_text(json.dumps({**answer, "status": "running"}))
    assert cli("finetune", "mode=probe", *QUICK).code == 0
    assert summary(runs("finetune")[-1])["init"] == "rotation"
    assert "did not finish (running)" in cli("finetune", f"init={newest}", "mode=probe", *QUICK).err


def found(name: str, started: str) -> Path:
    """Write the summary of a finished finetune run."""
    path = Path("outputs/finetune", name)
    path.mkdir(parents=True)
    summary = {"stage": "finetune", "status": "finished", "config": {"seed": 0}, "overrides": [],
               "wall_time_seconds": 1.0, "started": started}  # fmt: skip
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def test_the_newest_run_is_the_one_started_last_whatever_its_name() -> None:
    found("study_runs/z-1", "2026-01-01T10:00:00")
    newest = found("a", "2026-01-03T10:00:00")
    found("b", "2026-01-02T10:00:00")
    assert [p.name for p, _ in find(["finetune"], study_runs=True)] == ["z-1", "b", "a"]
    assert find_run("latest") == newest
