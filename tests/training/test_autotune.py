"""Autotuning: measuring, caching and recording the fastest precision and memory format."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from sslrun.base.console import log
from sslrun.device import Device
from sslrun.training import autotune
from sslrun.training.autotune import Candidate, choose, measure
from tests.helpers import Cli, cpu

NODE = {"_target_": "sslrun.models.backbones.smallcnn.smallcnn", "widths": [8, 16]}
EVERY = ["fp32 contiguous", "fp32 channels_last", "bf16 contiguous", "bf16 channels_last"]


@pytest.fixture(autouse=True)
def _with_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that this CPU supports bf16; others emulate it."""
    monkeypatch.setattr("sslrun.device.cpu_flags", lambda: {"avx512bw", "avx512dq", "avx512vl"})


def rates(monkeypatch: pytest.MonkeyPatch, fastest: str) -> list[int]:
    """Replace the measurement; return a list that grows with each."""
    sizes: list[int] = []

    def measured(
        device: Device, backbone: Any, image_size: int, batch_size: int, candidates: list[Candidate]
    ) -> dict[str, float]:
        sizes.append(image_size)
        return {" ".join(m): 2.0 if " ".join(m) == fastest else 1.0 for m in candidates}

    monkeypatch.setattr(autotune, "measure", measured)
    return sizes


@pytest.mark.parametrize("fastest", EVERY)
def test_the_fastest_candidate_is_chosen_and_cached(monkeypatch: pytest.MonkeyPatch, fastest: str) -> None:
    sizes = rates(monkeypatch, fastest)
    for _ in range(2):
        device = cpu()
        precision, memory_format = fastest.split()
        assert choose(device, NODE, 16, 64) == {
            "name": "cpu",
            "precision": precision,
            "memory_format": memory_format,
        }
        assert (device.precision, device.memory_format) == (precision, memory_format)
    assert sizes == [16]
    choose(cpu(), NODE, 32, 64)
    choose(cpu(), {**NODE, "widths": [4, 8]}, 16, 64)
    assert sizes == [16, 32, 16]


def test_nothing_is_measured_for_a_frozen_network(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = rates(monkeypatch, "fp32 contiguous")
    for native in ("bf16", "fp32"):
        monkeypatch.setattr("sslrun.device.native_precision", lambda name, native=native: native)
        device = cpu()
        device.precisions = ["fp32", "bf16"]
        found = choose(device, NODE, 16, 8, frozen=True)
        assert found == {"name": "cpu", "precision": native, "memory_format": "channels_last"}
        assert (device.precision, device.memory_format) == (native, "channels_last")
    given = cpu(precision="fp32", memory_format="contiguous")
    assert choose(given, NODE, 16, 8, frozen=True)["memory_format"] == "contiguous"
    assert not sizes


def test_a_given_precision_or_memory_format_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = rates(monkeypatch, "bf16 contiguous")
    device = cpu(precision="fp32", memory_format="channels_last")
    assert choose(device, NODE, 16, 64) == {
        "name": "cpu",
        "precision": "fp32",
        "memory_format": "channels_last",
    }
    assert sizes == []
    device = cpu(precision="bf16")
    assert choose(device, NODE, 16, 64) == {
        "name": "cpu",
        "precision": "bf16",
        "memory_format": "contiguous",
    }
    assert sizes == [16]


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", "\0", '{"a": 1}', '{"a": {"fp32 contiguous": "fast"}}', "[" * 99999]
)
def test_a_damaged_cache_is_rewritten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str) -> None:
    sizes = rates(monkeypatch, "bf16 contiguous")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "autotune.json").write_text(content)
    for _ in range(2):
        choose(cpu(), NODE, 16, 64)
    assert sizes == [16]


def test_a_cache_that_cannot_be_written_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sizes = rates(monkeypatch, "bf16 contiguous")
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("SSLRUN_CACHE", str(tmp_path / "file"))
    assert choose(cpu(), NODE, 16, 64)["precision"] == "bf16"
    assert sizes == [16]


class Dropping(nn.Module):
    """Draws random numbers in its constructor and in its forward pass."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.channels = [3]
        self.layers = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.layers(x)]


class Slow(Dropping):
    """Is slow under autocast."""

    steps: ClassVar[list[bool]] = []

    def forward(self, x: Tensor) -> list[Tensor]:
        half = torch.is_autocast_enabled("cpu")
        self.steps.append(half)
        time.sleep(1.3 if half else 0.05)
        return super().forward(x)


class Busy(Dropping):
    """Is fast once in five times, as on a busy machine."""

    calls: ClassVar[int] = 0

    def forward(self, x: Tensor) -> list[Tensor]:
        Busy.calls += self.training
        time.sleep(0.002 if Busy.calls % 5 == 0 else 0.04)
        return super().forward(x)


class Frozen(Dropping):
    """Has no trainable parameters."""

    def __init__(self, image_size: int) -> None:
        super().__init__(image_size)
        self.requires_grad_(False)


class Fussy(Dropping):
    """Fails under autocast, and cannot be copied."""

    def forward(self, x: Tensor) -> list[Tensor]:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("Index put requires the source and destination dtypes match\nand more")
        self.last = super().forward(x)
        return self.last


class Narrow(Dropping):
    """Has memory for two images."""

    def forward(self, x: Tensor) -> list[Tensor]:
        if len(x) > 2:
            raise RuntimeError("out of memory")
        return super().forward(x)


class Failing(Dropping):
    """Always fails in training mode."""

    def forward(self, x: Tensor) -> list[Tensor]:
        assert not self.training
        return super().forward(x)


@pytest.fixture
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accept noisy times, since the machine may be busy."""
    monkeypatch.setattr(autotune, "MAX_NOISE", 1e9)


@pytest.mark.usefixtures("_patient")
def test_every_candidate_is_timed_and_the_random_state_is_restored() -> None:
    device = cpu()
    random = torch.get_rng_state()
    choose(device, {"_target_": "tests.training.test_autotune.Dropping"}, 16, 64)
    assert torch.equal(random, torch.get_rng_state())
    (result,) = json.loads(Path(os.environ["SSLRUN_CACHE"], "autotune.json").read_text()).values()
    assert sorted(result) == sorted(EVERY)
    assert result[f"{device.precision} {device.memory_format}"] >= 0.98 * max(result.values()) > 0


def measured_rates(name: str) -> dict[str, float]:
    every: list[Candidate] = [(p, f) for p in ("fp32", "bf16") for f in ("contiguous", "channels_last")]
    return measure(cpu(), {"_target_": f"tests.training.test_autotune.{name}"}, 8, 64, every)


@pytest.mark.usefixtures("_patient")
def test_a_very_slow_candidate_is_tried_once() -> None:
    result = measured_rates("Slow")
    assert Slow.steps.count(True) == 2
    assert result["bf16 contiguous"] == result["bf16 channels_last"] == 0 < result["fp32 contiguous"]


def test_a_noisy_measurement_is_not_cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Busy, "calls", 0)
    monkeypatch.setattr(autotune, "SECONDS", 1.0)
    device = cpu()
    default = device.precision, device.memory_format
    choose(device, {"_target_": "tests.training.test_autotune.Busy"}, 8, 64)
    assert (device.precision, device.memory_format) == default
    assert not (tmp_path / "cache" / "autotune.json").exists()


@pytest.mark.usefixtures("_patient")
def test_candidates_that_fail_have_a_rate_of_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "TOO_SLOW", 1e9)  # the machine may pause
    monkeypatch.setattr(autotune, "SECONDS", 1e3)
    assert min(measured_rates("Frozen").values()) > 0
    result = measured_rates("Fussy")
    assert result["bf16 contiguous"] == result["bf16 channels_last"] == 0 < result["fp32 contiguous"]
    assert max(measured_rates("Failing").values()) == 0
    assert max(measured_rates("Narrow").values()) == 0
    device = cpu()
    default = device.precision, device.memory_format
    choose(device, {"_target_": "tests.training.test_autotune.Failing"}, 8, 64)
    assert (device.precision, device.memory_format) == default


@pytest.mark.slow
def test_the_choice_is_recorded_and_kept_by_resume_and_finetune(
    monkeypatch: pytest.MonkeyPatch, cli: Cli, tmp_path: Path
) -> None:
    small = ("backbone.widths=[8,16]", "train.batch_size=64", "train.evaluations=1", "device=cpu",
             "dataset.image_size=16", "dataset.max_images=100")  # fmt: skip
    rates(monkeypatch, "fp32 contiguous")
    assert cli("pretrain", "dataset=digits", "train.epochs=null", "train.steps=2", *small).code == 0
    (run,) = Path("outputs/pretrain").iterdir()

    def recorded(of: Path) -> tuple[str, str]:
        summary = json.loads((of / "summary.json").read_text())
        chosen = summary["config"]["device"]
        assert (summary["precision"], summary["memory_format"]) == (chosen["precision"], chosen["memory_format"])
        return chosen["precision"], chosen["memory_format"]

    assert recorded(run) == ("fp32", "contiguous")
    shutil.rmtree(tmp_path / "cache")
    rates(monkeypatch, "bf16 channels_last")  # another candidate is fastest now
    assert cli("pretrain", f"resume={run}", "train.steps=4").code == 0
    assert recorded(run) == ("fp32", "contiguous")
    assert cli("pretrain", f"resume={run}", "train.steps=6", "device=cpu").code == 0
    assert recorded(run) == ("fp32", "contiguous")
    assert cli("pretrain", f"resume={run}", "train.steps=8", "device.precision=bf16", "device.threads=1").code == 0
    assert recorded(run) == ("bf16", "contiguous")
    summary = json.loads((run / "summary.json").read_text())
    for key in ("memory_format", "compile"):  # as a run of an older version
        del summary["config"]["device"][key]
    (run / "summary.json").write_text(json.dumps(summary))
    assert cli("pretrain", f"resume={run}", "train.steps=10", "device.precision=auto").code == 0
    assert recorded(run) == ("bf16", "channels_last")
    if not torch.cuda.is_available():
        before = (run / "config.yaml").read_bytes()
        assert "device=cuda: torch found no" in cli("pretrain", f"resume={run}", "train.steps=12", "device=cuda").err
        assert (run / "config.yaml").read_bytes() == before
    few = ("label_fraction=0.1", "train.steps=2", "train.evaluations=1", "device=cpu")
    assert cli("finetune", "mode=finetune", *few).code == 0
    (tuned,) = Path("outputs/finetune").iterdir()
    assert recorded(tuned) == ("bf16", "channels_last")


def test_invalid_cached_rates_are_measured_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sizes = rates(monkeypatch, "bf16 contiguous")
    choose(cpu(), NODE, 16, 64)
    path = tmp_path / "cache" / "autotune.json"
    ((key, good),) = json.loads(path.read_text()).items()
    for bad in (float("nan"), -1, float("inf"), "fast", None, [1]):
        path.write_text(json.dumps({key: {**good, "fp32 contiguous": bad}}))
        assert choose(cpu(), NODE, 16, 64)["precision"] == "bf16"
    path.write_text(json.dumps({key: {"fp32 contiguous": 3}}))
    assert choose(cpu(), NODE, 16, 64)["precision"] == "bf16"
    assert len(sizes) == 8


def known(monkeypatch: pytest.MonkeyPatch, times: list[float]) -> list[Any]:
    """Replace the measured rates, in the order of EVERY; return a list of what was measured."""
    seen: list[Any] = []

    def measured(
        device: Device, backbone: Any, image_size: int, batch_size: int, candidates: list[Candidate]
    ) -> dict[str, float]:
        seen.append((backbone["widths"], image_size, batch_size, [" ".join(c) for c in candidates]))
        by_name = dict(zip(EVERY, times, strict=True))
        return {" ".join(c): by_name[" ".join(c)] for c in candidates}

    monkeypatch.setattr(autotune, "measure", measured)
    return seen


@pytest.mark.parametrize(
    ("times", "chosen"),
    [([99, 98.1, 100, 50], "fp32 channels_last"), ([99, 97.9, 90, 100], "fp32 contiguous"), ([1, 2, 3, 4], EVERY[3])],
)
def test_of_nearly_equally_fast_candidates_the_first_is_chosen(
    times: list[float], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The formats of fp32 come first, and channels_last before contiguous."""
    messages: list[str] = []
    monkeypatch.setattr(log, "info", lambda text, *values: messages.append(text % values))
    (seen,) = [known(monkeypatch, times)]
    device = cpu()
    if device.precisions != ["fp32", "bf16"]:
        pytest.skip("this CPU has no bf16")
    choose(device, NODE, 16, 64)
    assert seen[0] == ([8, 16], 16, 64, [EVERY[1], EVERY[0], EVERY[3], EVERY[2]])
    assert f"{device.precision} {device.memory_format}" == chosen
    ranked = sorted(zip(times, EVERY, strict=True), reverse=True)
    assert messages == [
        "Autotuning (images/s, forward and backward pass): " + ", ".join(f"{name} {rate:.0f}" for rate, name in ranked)
    ]


def test_the_cache_keeps_the_rates_of_each_network_size_batch_and_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = known(monkeypatch, [1, 2, 3, 4])
    cases = [(NODE, 16, 64), (NODE, 16, 32), (NODE, 24, 64), ({**NODE, "widths": [4]}, 16, 64)]
    for _ in range(2):
        for case in cases:
            choose(cpu(), *case)
    assert [c[:3] for c in seen] == [([8, 16], 16, 64), ([8, 16], 16, 32), ([8, 16], 24, 64), ([4], 16, 64)]
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    choose(cpu(), *cases[0])
    monkeypatch.setattr(torch, "__version__", "0.1")
    choose(cpu(), *cases[0])
    monkeypatch.setattr(autotune, "processor", lambda: "another")
    choose(cpu(), *cases[0])
    choose(cpu(precision="fp32"), *cases[0])
    assert len(seen) == 8
    content = json.loads(Path(os.environ["SSLRUN_CACHE"], "autotune.json").read_text())
    assert len(content) == 8


def test_a_failed_measurement_keeps_the_default_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[str] = []
    monkeypatch.setattr(log, "warning", lambda text, *values: messages.append(text % values))
    monkeypatch.setattr(autotune, "measure", lambda *_: {})
    device = cpu()
    default = f"{device.precision} {device.memory_format}"
    choose(device, NODE, 16, 64)
    assert f"{device.precision} {device.memory_format}" == default
    assert messages == [f"Autotuning: the times vary too much (is the machine busy?); using {default}"]
    assert not Path(os.environ["SSLRUN_CACHE"], "autotune.json").exists()


class Clocked(Dropping):
    """Takes 10 ms per image on a clock of its own, and twice as long in channels_last."""

    now: ClassVar[list[float]] = [0.0]
    sizes: ClassVar[list[int]] = []

    def forward(self, x: Tensor) -> list[Tensor]:
        slower = 1.5 if x.is_contiguous(memory_format=torch.channels_last) else 1.0
        Clocked.now[0] += 0.01 * len(x) * slower
        Clocked.sizes.append(len(x))
        return super().forward(x)


@pytest.mark.parametrize(("batch_size", "largest"), [(2, 2), (4, 4), (1000, 40)])
def test_rates_are_images_per_second_of_batches_that_the_time_allows(
    batch_size: int, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autotune.time, "perf_counter", lambda: Clocked.now[0])
    monkeypatch.setattr(autotune, "SECONDS", 3.5)
    Clocked.sizes.clear()
    both: list[Candidate] = [("fp32", "contiguous"), ("fp32", "channels_last")]
    device = cpu()
    result = measure(device, {"_target_": "tests.training.test_autotune.Clocked"}, 8, batch_size, both)
    assert result == {"fp32 contiguous": 100.0, "fp32 channels_last": pytest.approx(66.7)}
    assert max(Clocked.sizes) <= largest
    assert max(Clocked.sizes) > largest // 2
