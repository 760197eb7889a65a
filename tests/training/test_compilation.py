"""device.compile=auto: the fastest mode of torch.compile, measured in steps of the training itself."""

import shutil
import time
from typing import Any

import pytest
import torch
from torch import nn

from sslrun.device import Device
from sslrun.models.encoder import Encoder
from sslrun.training import compilation
from sslrun.training.batches import Batches
from sslrun.training.compilation import choose
from tests.every_task import IMAGES, task_named
from tests.helpers import ADAMW, TINY, Cli, cpu, runs, summary

TOTAL, BATCH = 100, 8
CONFIG = {
    "backbone": {"_target_": "smallcnn"}, "pretext": {}, "dataset": {"image_size": 32}, "optimizer": ADAMW,
    "train": {"gradient_clip": None},
}  # fmt: skip
Times = dict[str | None, float]


def chosen(monkeypatch: pytest.MonkeyPatch, times: Times, shortest: float = 0.0) -> tuple[Any, list[Any]]:
    """Return the choice among all modes and the steps that were taken, if each takes a time; a negative one fails."""
    steps: list[Any] = []

    def step(task: Any, one: Any, total: int, optimizer: Any, device: Device, clip: Any) -> None:
        encoder = task.get_submodule(task.downstream)
        assert encoder.mode == device.compiled
        assert one.images == len(one.batch["images"]) == BATCH
        steps.append((device.compiled, task, encoder))
        if times[device.compiled] < 0:
            raise RuntimeError("no compiler\nand more")
        time.sleep(times[device.compiled])
        torch.rand(1)

    monkeypatch.setattr(compilation, "train_step", step)
    monkeypatch.setattr(compilation, "SHORTEST", shortest)
    monkeypatch.setattr(Encoder, "mode", None, raising=False)
    monkeypatch.setattr(nn.Module, "compile", lambda self, mode: setattr(self, "mode", mode))
    device = cpu(compile="auto")
    device.compilations = [None, "default", "reduce-overhead"]
    task: Any = task_named("simclr")
    images = torch.zeros(IMAGES, 3, 32, 32, dtype=torch.uint8)
    first = next(iter(Batches(images, None, BATCH, TOTAL, 0, device).after(0)))
    before = torch.get_rng_state()
    mode = choose(task, task.encoder, first, TOTAL, CONFIG, device)
    assert torch.equal(torch.get_rng_state(), before)
    assert device.compiled == mode
    assert task.encoder.mode is None
    assert all(trained is not task and encoder is not task.encoder for _, trained, encoder in steps)
    return mode, [mode for mode, _, _ in steps]


@pytest.mark.parametrize(
    ("times", "mode"),
    [
        ({None: 0.02, "default": 0.002, "reduce-overhead": 0.02}, "default"),
        ({None: 0.02, "default": 0.02, "reduce-overhead": 0.002}, "reduce-overhead"),
        ({None: 0.002, "default": 0.02, "reduce-overhead": 0.02}, None),
        ({None: 0.02, "default": 0.002, "reduce-overhead": -1}, "default"),
        ({None: 0.002, "default": -1, "reduce-overhead": -1}, None),
        ({None: -1, "default": 0.002, "reduce-overhead": 0.002}, None),  # training says why
    ],
)
def test_the_fastest_mode_is_chosen(times: Times, mode: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, times)[0] == mode


def test_the_rates_are_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    mode, steps = chosen(monkeypatch, {None: 0.02, "default": 0.002, "reduce-overhead": 0.02})
    assert {*steps} == {None, "default", "reduce-overhead"}
    again, steps = chosen(monkeypatch, {None: 0.002, "default": 0.02, "reduce-overhead": 0.02})
    assert (again, steps) == (mode, [])


def test_a_short_training_is_not_compiled(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Neither where nothing is cached, nor where a mode is known to be faster."""
    caplog.set_level("INFO", "sslrun")
    times: Times = {None: 0.02, "default": 0.002, "reduce-overhead": 0.02}
    mode, steps = chosen(monkeypatch, times, shortest=1e3)
    assert (mode, {*steps}) == (None, {None})
    assert "the training is too short for it" in caplog.text
    assert chosen(monkeypatch, times)[0] == "default"
    assert chosen(monkeypatch, times, shortest=1e3) == (None, [])


def test_a_task_that_cannot_be_copied_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, memo: Any) -> None:
        raise RuntimeError("only leaves can be copied")

    monkeypatch.setattr(type(task_named("simclr")), "__deepcopy__", refuse, raising=False)
    assert chosen(monkeypatch, {}) == (None, [])


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_a_mode_is_measured_recorded_and_kept_on_resume(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[dict[str, float]] = []

    def rates(device: Device, about: Any, names: list[str], measured: Any) -> dict[str, float]:
        found.append(measured())
        return {"None": 1.0, "default": 2.0}  # whatever was measured

    monkeypatch.setattr(compilation, "SHORTEST", 0.0)
    monkeypatch.setattr(compilation, "cached_rates", rates)
    fixed = ("train.steps=3", "train.evaluations=1", "device.precision=fp32", "device.memory_format=channels_last")
    done = cli("pretrain", "dataset=digits", *TINY, *fixed, "device.compile=auto")
    assert done.code == 0, done.err
    assert "Autotuning of torch.compile (images/s of training): eager 1, default 2" in done.err
    assert min(found[0][mode] for mode in ("None", "default")) > 0
    (run,) = runs("pretrain")
    assert summary(run)["config"]["device"]["compile"] == "default"
    done = cli("pretrain", f"resume={run}", "train.steps=5")
    assert done.code == 0, done.err
    assert "Autotuning of torch.compile" not in done.err
    assert summary(run)["config"]["device"]["compile"] == "default"
