"""The run directory."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from sslrun.base.errors import UserError
from sslrun.runs.run import Run


def test_the_files_and_entries_of_a_run_directory(world: Path) -> None:
    run = sorted((world / "outputs/pretrain").iterdir())[0]
    names = {p.name for p in run.iterdir()}
    assert {
        "config.yaml",
        "run.log",
        "metrics.jsonl",
        "last.pt",
        "best.pt",
        "summary.json",
        "figures",
    } <= names
    assert any(n.startswith("events.out.tfevents") for n in names)
    for figure in ("views", "curves"):
        with Image.open(run / "figures" / f"{figure}.png") as image:
            assert image.width > 200
    answer = json.loads((run / "summary.json").read_text())
    assert answer["status"] == "finished"
    assert answer["pretext"] == "rotation"
    assert answer["images_per_second"] > 0
    assert answer["wall_time_seconds"] > 0
    assert answer["seeds"] == {"training": 0, "split": 0}
    assert torch.__version__.startswith(answer["versions"]["torch"])
    assert len(answer["data_fingerprint"]) == 16
    assert answer["command"].startswith("sslrun pretrain pretext=rotation dataset=folder")
    for key in (
        "train/loss",
        "train/pretext_accuracy",
        "val/feature_spread",
        "val/effective_rank",
        "val/knn_accuracy",
    ):
        assert key in answer
    assert "${" not in (run / "config.yaml").read_text()


def test_a_run_does_not_write_into_the_directory_of_another() -> None:
    Run(Path("a"), "pretrain", OmegaConf.create({}), {}).close("finished")
    with pytest.raises(UserError, match="contains a run already"):
        Run(Path("a"), "pretrain", OmegaConf.create({}), {})


class Clock:
    """A clock that only tests advance."""

    now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    result = Clock()
    monkeypatch.setattr("time.monotonic", lambda: result.now)
    return result


def begin(resumed: bool = False, overrides: dict[str, str] | None = None) -> Run:
    run = Run(Path("run"), "pretrain", OmegaConf.create({"seed": 0}), overrides or {}, resumed)
    run.keep_changes()
    return run


def summary() -> dict[str, Any]:
    result: dict[str, Any] = json.loads(Path("run/summary.json").read_text())
    return result


def test_the_wall_time_of_a_resumed_run_is_the_sum_of_its_sessions(clock: Clock) -> None:
    for resumed, status, seconds, total in (
        (False, "interrupted", 50, 50),
        (True, "failed", 20, 70),
        (True, "finished", 3.5, 73.5),
    ):
        run = begin(resumed)
        clock.now += seconds
        run.close(status)
        clock.now += 1e6  # until it is resumed
        assert (summary()["wall_time_seconds"], summary()["status"]) == (total, status)


def test_a_run_that_is_killed_has_the_wall_time_of_its_last_note(clock: Clock) -> None:
    run = begin()
    clock.now += 30
    run.note(images=5)
    shutil.copytree("run", "killed")
    run.close("finished")
    shutil.rmtree("run")
    Path("killed").rename("run")
    assert summary()["status"] == "running"
    resumed = begin(True)
    clock.now += 12
    resumed.close("finished")
    assert summary()["wall_time_seconds"] == 42


def test_a_resumed_run_keeps_its_start_and_its_overrides(clock: Clock) -> None:
    begin(overrides={"train.steps": "8", "seed": "0"}).close("failed", error="out of memory")
    before = summary()
    begin(True, {"train.steps": "12", "resume": "run"}).close("finished")
    assert summary()["started"] == before["started"]
    assert summary()["overrides"] == ["train.steps=12", "seed=0"]
    assert "error" not in summary()
