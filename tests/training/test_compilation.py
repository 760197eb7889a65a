"""device.compile=auto: the fastest mode of torch.compile, as measured."""

import os
import shutil
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from sslrun.base import processes
from sslrun.device import Device
from sslrun.training import compilation
from sslrun.training.compilation import choose
from tests.helpers import TINY, Cli, cpu, runs, summary

NODE = {"_target_": "sslrun.models.backbones.smallcnn.smallcnn", "widths": [8, 16]}
IMAGES, STEPS = 8, 100
MODES: list[Any] = [None, "default", "reduce-overhead"]
Times = dict[str | None, float]


class Timed(nn.Module):
    """A backbone that takes a time of its own in each mode; a negative one fails, 0 computes something else."""

    times: ClassVar[Times] = {}
    used: ClassVar[list[str | None]] = []

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.channels, self.layer, self.mode = [4], nn.Conv2d(3, 4, 3), None

    def compile(self, mode: Any) -> None:
        self.mode = mode

    def forward(self, x: Tensor) -> list[Tensor]:
        if len(x) == IMAGES:  # not the example of `build_encoder`
            self.used.append(self.mode)
            if self.times[self.mode] < 0:
                raise RuntimeError("no compiler\nand more")
            time.sleep(self.times[self.mode])
        return [self.layer(x) * (1 if self.times[self.mode] else 2)]


def chosen(monkeypatch: pytest.MonkeyPatch, times: Times, steps: int = STEPS) -> tuple[str | None, list[Any]]:
    """Return the choice among all modes, and the modes of all steps that were taken."""
    monkeypatch.setattr(Timed, "times", times)
    monkeypatch.setattr(Timed, "used", [])
    monkeypatch.setattr(compilation, "SHORTEST", 0.1)
    monkeypatch.setattr(compilation, "SECONDS", 0.0)
    monkeypatch.setattr(compilation, "MAX_NOISE", 1e9)  # the machine may be busy
    device = cpu(compile="auto")
    device.compilations = MODES
    before = torch.get_rng_state()
    mode = choose(device, {"_target_": "tests.training.test_compilation.Timed"}, 16, IMAGES, steps)["compile"]
    assert torch.equal(torch.get_rng_state(), before)
    assert device.compiled == mode
    return mode, Timed.used


@pytest.mark.parametrize(
    ("times", "mode"),
    [
        ({None: 0.02, "default": 0.002, "reduce-overhead": 0.02}, "default"),
        ({None: 0.02, "default": 0.02, "reduce-overhead": 0.002}, "reduce-overhead"),
        ({None: 0.002, "default": 0.02, "reduce-overhead": 0.02}, None),
        ({None: 0.02, "default": 0.002, "reduce-overhead": -1}, "default"),
        ({None: 0.002, "default": -1, "reduce-overhead": -1}, None),
        ({None: -1, "default": 0.002, "reduce-overhead": 0.002}, None),  # training says why
        ({None: 0.02, "default": 0, "reduce-overhead": 0.002}, "reduce-overhead"),
    ],
)
def test_the_fastest_mode_is_chosen(times: Times, mode: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, times)[0] == mode


def test_the_rates_are_cached_if_every_mode_works(monkeypatch: pytest.MonkeyPatch) -> None:
    mode, used = chosen(monkeypatch, {None: 0.02, "default": 0.002, "reduce-overhead": -1})
    assert mode == "default"
    mode, used = chosen(monkeypatch, {None: 0.02, "default": 0.02, "reduce-overhead": 0.002})  # it is mended
    assert (mode, {*used}) == ("reduce-overhead", {*MODES})
    mode, used = chosen(monkeypatch, {None: 0.002, "default": 0.02, "reduce-overhead": 0.02})
    assert (mode, used) == ("reduce-overhead", [])


def test_a_short_training_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where nothing is cached, nor where a mode is known to be faster."""
    times: Times = {None: 0.02, "default": 0.002, "reduce-overhead": 0.02}
    mode, used = chosen(monkeypatch, times, steps=1)
    assert (mode, {*used}) == (None, {None})
    assert chosen(monkeypatch, times)[0] == "default"
    assert chosen(monkeypatch, times, steps=1) == (None, [])


def test_times_that_vary_too_much_decide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    times: Times = {None: 0.02, "default": 0.002, "reduce-overhead": 0.02}
    with monkeypatch.context() as patch:
        patch.setattr(compilation.statistics, "median", lambda values: 1e19 * max(values))
        assert chosen(monkeypatch, times)[0] is None
    assert not (Path(os.environ["SSLRUN_CACHE"]) / "compile.json").exists()
    assert chosen(monkeypatch, times)[0] == "default"


def test_several_processes_train_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "count", lambda: 2)
    assert chosen(monkeypatch, {None: 0.02, "default": 0.002, "reduce-overhead": 0.02}) == (None, [])


def test_the_scaler_of_the_training_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    device = cpu(compile="auto")
    device.scaler = None  # type: ignore[assignment]
    device.compilations = [None]
    monkeypatch.setattr(compilation, "SHORTEST", 0.0)
    monkeypatch.setattr(compilation, "SECONDS", 0.0)
    assert choose(device, NODE, 16, IMAGES, STEPS) == {"compile": None}


def test_a_network_that_fails_later_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when another process takes the memory; training says why."""
    seconds, calls = compilation._Trial.seconds, iter([False] * len(MODES) + [True] * 99)

    def failing(self: Any) -> float:
        if next(calls):
            raise RuntimeError("out of memory")
        return seconds(self)

    monkeypatch.setattr(compilation._Trial, "seconds", failing)
    assert chosen(monkeypatch, {None: 0.02, "default": 0.002, "reduce-overhead": 0.02})[0] is None


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("task", ["simclr", "inpainting"])  # features, and maps
def test_a_mode_is_measured_recorded_and_kept_on_resume(task: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[dict[str, float]] = []

    def rates(device: Device, about: Any, names: list[str], measured: Any, file: str) -> dict[str, float]:
        found.append(measured())
        return {"None": 1.0, "default": 2.0}  # whatever was measured

    monkeypatch.setattr(compilation, "SHORTEST", 0.0)
    monkeypatch.setattr(compilation, "MAX_NOISE", 1e9)
    monkeypatch.setattr(compilation, "cached_rates", rates)
    fixed = ("train.steps=3", "train.evaluations=1", "device.precision=fp32", "device.memory_format=channels_last")
    done = cli("pretrain", "dataset=digits", f"pretext={task}", *TINY, *fixed, "device.compile=auto")
    assert done.code == 0, done.err
    assert "device.compile=auto: default (images/s, forward and backward pass: eager 1, default 2)" in done.err
    assert min(found[0][mode] for mode in ("None", "default")) > 0
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    (run,) = runs("pretrain")
    assert summary(run)["config"]["device"]["compile"] == "default"
    done = cli("pretrain", f"resume={run}", "train.steps=5")
    assert done.code == 0, done.err
    assert len(found) == 1
    assert summary(run)["config"]["device"]["compile"] == "default"
