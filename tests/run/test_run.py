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
from sslrun.run.run import Run


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
        "val/alignment",
        "val/uniformity",
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


def test_a_resumed_run_is_left_as_it_was_until_its_checkpoint_is_loaded(clock: Clock) -> None:
    begin().close("failed", error="out of memory")
    names = ("run/summary.json", "run/config.yaml")
    before = [Path(n).read_text() for n in names]
    run = Run(Path("run"), "pretrain", OmegaConf.create({"seed": 1}), {"seed": "1"}, True)
    assert [Path(n).read_text() for n in names] != before
    run.close("failed", error="no checkpoint")
    assert [Path(n).read_text() for n in names] == before
    run = Run(Path("run"), "pretrain", OmegaConf.create({"seed": 1}), {"seed": "1"}, True)
    run.keep_changes()
    run.close("failed", error="later")
    assert (summary()["config"], summary()["error"]) == ({"seed": 1}, "later")
    assert Path("run/config.yaml").read_text() == "seed: 1\n"
    run = Run(Path("run"), "pretrain", OmegaConf.create({"seed": 2}), {}, True)
    run.close("finished", images=3)
    assert (summary()["config"], summary()["status"], summary()["images"]) == ({"seed": 2}, "finished", 3)


def test_a_restarted_job_begins_anew(clock: Clock) -> None:
    run = begin()
    run.log.scalars(0, {"train/loss": 1.0})
    clock.now += 5
    run.close("failed", error="out of memory")
    with pytest.raises(UserError, match="run contains a run already; use resume=run to resume it"):
        begin()
    run = Run(Path("run"), "pretrain", OmegaConf.create({"seed": 0}), {}, restarted=True)
    assert Path("run/metrics.jsonl").read_text() == ""
    clock.now += 2
    run.close("finished")
    assert "error" not in summary()
    assert summary()["wall_time_seconds"] == 2


def test_a_resumed_study_keeps_its_command_and_another_run_has_the_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for resumable, words in (("study", "seed=1"), ("checkpoint", "resume=run")):
        shutil.rmtree("run", ignore_errors=True)
        monkeypatch.setattr("sys.argv", ["sslrun", "seed=1"])
        run = begin()
        run.note(resumable=resumable)
        run.close("interrupted")
        monkeypatch.setattr("sys.argv", ["sslrun", "resume=run"])
        begin(True).close("finished")
        assert summary()["command"] == f"sslrun pretrain {words}"


def test_the_command_of_a_run_names_the_run_that_latest_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["sslrun", "format=csv"])
    run = Run(Path("run"), "predict", OmegaConf.create({"run": "latest"}), {"format": "csv"})
    run.resolve(run="a b")
    assert run.config == {"run": "a b"}
    assert run.command == "sslrun predict format=csv 'run=a b'"
    run.overrides["run"] = "latest"
    assert run.command == "sslrun predict format=csv"
    run.resolve(run=None)
    run.overrides.pop("run")
    assert run.command == "sslrun predict format=csv"
    run.close("finished")


def test_only_a_resumed_run_refuses_other_data() -> None:
    run = begin()
    run.note(data_fingerprint="a")
    run.refuse_other_data("b", 3)
    run.close("interrupted")
    run = begin(True)
    run.refuse_other_data("a", 3)
    with pytest.raises(UserError, match=r"other images, labels or classes than those found now \(images: 3\)"):
        run.refuse_other_data("b", 3)
    run.summary.pop("data_fingerprint")
    run.refuse_other_data("b", 3)
    run.close("finished")


def test_nothing_is_logged_to_a_run_after_its_end() -> None:
    from sslrun.base.console import log

    run = begin()
    log.warning("during the run")
    run.close("finished")
    log.warning("after it")
    text = Path("run/run.log").read_text()
    assert "WARNING during the run" in text
    assert "after it" not in text
    assert run.figure("a") == Path("run/figures/a.png")


def test_a_run_gives_its_summary_and_how_it_ended_to_the_loggers(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    for status in ("finished", "failed"):
        run = begin(status == "failed")
        monkeypatch.setattr(run.log, "close", given.append)
        run.close(status, images=3)
    assert given == [{**g, "images": 3, "status": s} for g, s in zip(given, ("finished", "failed"), strict=True)]
