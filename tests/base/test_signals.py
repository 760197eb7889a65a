"""Signals: the run is saved, says how to resume it, and ends."""

import functools
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from sslrun.run import checkpoint
from sslrun.run.find import LAST, PREVIOUS
from tests import helpers
from tests.helpers import (
    DIGITS,
    FINETUNE,
    OFTEN,
    PRETRAIN,
    STEPS,
    ended,
    in_steps,
    logged,
    only_run,
    run_forked,
    run_here,
    same,
    spawn,
    start,
    wait_for,
    whole,
)


def stopped(number: int, stage: tuple[str, ...]) -> tuple[Path, str]:
    """Stop a run by a signal as soon as it takes steps; return its directory and its output."""
    process = start(*stage)
    wait_for(process, lambda: in_steps("*/*"))
    assert process.pid is not None
    os.kill(process.pid, number)
    code, answer = ended(process), Path("output").read_text()
    assert code == 128 + number, answer
    assert "Traceback" not in answer
    return only_run(stage=stage[0]), answer


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, ...]], str]:
    """Return a folder in which a command ran from beginning to end."""

    @functools.cache
    def run(arguments: tuple[str, ...]) -> str:
        folder = str(tmp_path_factory.mktemp("straight"))
        run_forked(*arguments, folder=folder)
        return folder

    return run


@pytest.mark.parametrize("number", [signal.SIGTERM, *helpers.slow([signal.SIGINT, signal.SIGHUP])])
@pytest.mark.parametrize("stage", [PRETRAIN, *helpers.slow([FINETUNE])], ids=["pretrain", "finetune"])
def test_case_23_a_signal_saves_and_prints_the_command_that_goes_on(
    number: int, stage: tuple[str, ...], straight: Callable[[tuple[str, ...]], str]
) -> None:
    longer = tuple(a.replace(f"steps={STEPS}", "steps=150") for a in stage)
    place, answer = stopped(number, longer)
    assert json.loads((place / "summary.json").read_text())["status"] == "interrupted"
    step = checkpoint.load(place / LAST)["step"]
    assert 1 < step < 150
    command = re.search(r"Resume with: sslrun (\S+) (\S+)", answer)
    assert command is not None
    assert f"Resuming after step {step}" in run_forked(*command.groups())
    assert (place / "run.log").read_text().count("Stopped by") == 1
    alone = only_run(straight(longer), stage[0])
    assert same(whole(place), whole(alone))
    assert logged(place) == logged(alone)


SLOW = """
import time
from sslrun.tasks.task import Task

class Slow(Task):
    def __init__(self, encoder, image_size, *, seconds: float) -> None:
        super().__init__()
        self.encoder, self.seconds = encoder, seconds

    def views(self, images, rng):
        return {"view": images}

    def forward(self, batch, rng):
        time.sleep(self.seconds)
        return {"loss": self.encoder(batch["images"]).square().mean()}
"""


def slow(seconds: float) -> ForkServerProcess:
    """Start a run whose steps take so many seconds, and wait until it is in one."""
    Path("mine/pretext").mkdir(parents=True)
    Path("slow.py").write_text(SLOW)
    Path("mine/pretext/slow.yaml").write_text(f"_target_: slow.Slow\nseconds: {seconds}\n")
    process = start("pretrain", "-cd", "mine", "pretext=slow", *DIGITS, "train.steps=50")
    wait_for(process, lambda: bool(list(Path("outputs").glob("pretrain/*/last.pt"))))
    time.sleep(0.3)
    assert process.pid is not None
    return process


@pytest.mark.slow
def test_case_24_a_second_signal_ends_at_once_and_a_repeated_one_is_the_same() -> None:
    process = slow(20.0)
    assert process.pid is not None
    for pause in (0.1, 0.7):
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(pause)
        assert process.is_alive()
    began = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    assert ended(process) == 128 + signal.SIGTERM
    assert time.monotonic() - began < 15  # the step would have gone on for longer
    assert "Resume with" not in Path("output").read_text()
    checkpoint.load(only_run() / LAST)


def test_case_23_a_terminal_that_is_closed_loses_nothing() -> None:
    """Standard error is a pipe whose reader is gone by the time of the signal, as with `2>&1 | tee` and Ctrl-C."""
    os.mkfifo("terminal")
    Path("output").touch()
    longer = (*PRETRAIN, "train.steps=20000", "train.evaluations=1")
    process = spawn(run_here, *longer, out="terminal", err="terminal")
    with open("terminal", "rb"):
        wait_for(process, lambda: in_steps("*/*"))
    assert process.pid is not None
    os.kill(process.pid, signal.SIGHUP)
    assert ended(process) == 128 + signal.SIGHUP
    assert json.loads((only_run() / "summary.json").read_text())["status"] == "interrupted"
    assert checkpoint.load(only_run() / LAST)["step"] > 1
    assert "Stopped by SIGHUP. Resume with: sslrun pretrain resume=" in (only_run() / "run.log").read_text()


def test_case_25_a_signal_during_a_save() -> None:
    """With 20 MB of weights and a checkpoint after each of its short steps, nearly all the time is spent saving."""
    large = [a for a in PRETRAIN if not a.startswith(("backbone", "dataset.image", "train.batch", "train.steps"))]
    large += ["backbone.widths=[8,16,512,512]", "dataset.image_size=12", "train.batch_size=4", "train.steps=400"]
    for _ in range(2):
        place, _said = stopped(signal.SIGTERM, (*large, *OFTEN))
        assert checkpoint.load(place / LAST)["step"] > 0
        assert checkpoint.load(place / PREVIOUS)["step"] >= 0
        assert not list(place.glob(".*.part"))
        shutil.rmtree("outputs")
