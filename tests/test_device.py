import json
import os
import platform
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sslrun import device as devices
from sslrun.base.errors import UserError
from sslrun.device import Device, inference_device, kind, native_precision
from sslrun.models.backbones.smallcnn import smallcnn
from sslrun.models.encoder import Encoder
from tests.helpers import LEFT_OPEN, TINY, Cli, cpu, ended, spawn


def tiny() -> Encoder:
    return Encoder(smallcnn(16, widths=[8, 16]), [0.5] * 3, [0.25] * 3)


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_the_memory_format_is_that_of_every_view(memory_format: Any) -> None:
    device = cpu(precision="fp32", memory_format=memory_format)
    encoder = tiny()
    seen: list[Tensor] = []
    next(encoder.backbone.children()).register_forward_hook(lambda _, inputs, out: seen.extend([inputs[0], out]))
    device.put(encoder)
    tiles = torch.rand(2, 16, 16, 3).permute(0, 3, 1, 2)  # as they come out of a jigsaw, in either format
    for views in (tiles, tiles.contiguous()):
        encoder(views)
    assert all(t.is_contiguous(memory_format=device.format) for t in seen)


@pytest.mark.parametrize(
    ("trained", "overrides", "used"),
    [("fp32", "auto", "fp32"), ("bf16", "auto", native_precision("cpu")), ("fp32", "bf16", "bf16")],
)
def test_a_classifier_computes_as_it_was_trained(trained: str, overrides: str, used: str) -> None:
    node = {"_target_": "sslrun.device.Device", "name": "cpu", **LEFT_OPEN, "precision": overrides}
    device = inference_device(node, {"precision": trained, "memory_format": "contiguous"})
    assert (device.precision, device.memory_format) == (used, "contiguous")


def faults_of_a_large_array() -> int:
    """Return 1 if pages that were freed are given back to the system."""
    import resource

    cpu().claim()
    faults = []
    for _ in range(20):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.empty(64 << 20, dtype=torch.uint8).fill_(1)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return int(sorted(faults)[10] > 1000)  # 16,384 pages, if they had been given back


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc gives memory back, and can be configured not to")
def test_freed_memory_is_kept() -> None:
    """In a process of its own: after an allocation that failed, as other tests have, glibc maps large arrays."""
    assert ended(spawn(faults_of_a_large_array)) == 0


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_training_gives_the_same_losses(cli: Cli) -> None:
    losses = []
    for compiled in ("null", "default"):
        steps = ("train.epochs=null", "train.steps=6", "train.evaluations=2", "train.log_every=1")
        done = cli("pretrain", "dataset=digits", *steps, *TINY, f"device.compile={compiled}")
        assert done.code == 0, done.err
        run = max(Path("outputs/pretrain").iterdir())
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["train/loss"] for line in lines if "train/loss" in line])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_the_description_has_the_number_of_threads_in_use() -> None:
    assert cpu().describe() == f"cpu ({torch.get_num_threads()} threads)"
    white = cpu().floats(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8))
    assert white.min() == white.max() == 1


@pytest.mark.parametrize(
    ("name", "keys", "words"),
    [
        ("cuda", {}, "device=cuda: torch found no CUDA GPU"),
        ("mps", {}, "device=mps: torch found no Apple GPU"),
        ("cpu", {"precision": "fp16"}, "device.precision=fp16 needs a GPU"),
        ("cpu", {"compile": "default"}, "device.compile=default needs a C"),
    ],
)
def test_what_this_machine_lacks_is_refused(
    name: Any, keys: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UserError, match=words):
        Device(name=name, **{**LEFT_OPEN, **keys})


@pytest.mark.parametrize("compiler", ["mine", "clang++", "cl"])
def test_any_compiler_will_do(compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "mine")
    monkeypatch.setattr(shutil, "which", lambda name: name if name == compiler else None)
    calls: list[str] = []
    monkeypatch.setattr(torch.compiler, "set_stance", lambda stance: calls.append(stance) or nullcontext())  # type: ignore[func-returns-value]
    encoder: Any = SimpleNamespace(backbone=SimpleNamespace(compile=lambda mode: calls.append(mode)))
    for device in (cpu(compile="max-autotune"), cpu()):
        device.compile(encoder)
        with device.eager():
            calls.append("eager")
    assert calls == ["max-autotune", "force_eager", "eager", "eager"]  # the second is not compiled


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Pretend that there is a GPU, which supports bf16 if `bf16` is set and emulates it otherwise."""
    found = {"bf16": True, "waited": 0}
    supported = lambda including_emulation=True: found["bf16"] or including_emulation  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: found.update(waited=found["waited"] + 1))
    return found


def test_a_gpu_is_used_if_there_is_one_in_the_precision_that_it_supports(
    cuda: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (kind("auto"), kind("cpu")) == ("cuda", "cpu")
    for bf16, precision, dtype in ((True, "bf16", torch.bfloat16), (False, "fp16", torch.float16)):
        cuda["bf16"] = bf16
        device = Device(name="auto", **LEFT_OPEN)
        assert (device.torch.type, device.precision, device.precisions) == ("cuda", precision, [precision, "fp32"])
        assert device.scaler.is_enabled() == (precision == "fp16")  # bf16 has the range of fp32
        context: Any = device.autocast()
        assert (context.device, context.fast_dtype, context._enabled) == ("cuda", dtype, True)
        device.use("fp32", "contiguous")
        assert (device.scaler.is_enabled(), device.autocast()._enabled) == (False, False)  # type: ignore[attr-defined]
    assert device.describe() == "A GPU"
    device.wait()
    cpu().wait()
    assert cuda["waited"] == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (kind("auto"), kind("mps")) == ("cpu", "mps")


def test_claiming_sets_threads_and_memory_each_where_it_belongs(
    cuda: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    monkeypatch.setattr(devices, "_keep_freed_memory", lambda: calls.append("memory"))
    cpu(threads=3).claim()
    cpu().claim()
    assert calls == [3, "memory", "memory"]
    Device(name="cuda", **LEFT_OPEN).claim()
    assert calls == [3, "memory", "memory"]


AVX512 = {"avx512bw", "avx512dq", "avx512vl"}


@pytest.mark.parametrize(
    ("flags", "native", "tried"),
    [
        (set(), "fp32", ["fp32"]),
        ({"avx512bw", "avx512dq"}, "fp32", ["fp32"]),
        (AVX512, "fp32", ["fp32", "bf16"]),  # by conversion, so that training measures it
        (AVX512 | {"avx512_bf16"}, "bf16", ["fp32", "bf16"]),
        (AVX512 | {"amx_tile"}, "bf16", ["fp32", "bf16"]),
        ({"asimd", "bf16"}, "fp32", ["fp32", "bf16"]),  # ARM
    ],
)
def test_the_precision_of_a_cpu_follows_its_instructions(
    flags: set[str], native: str, tried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    device = cpu()
    assert (device.precision, native_precision("cpu"), device.precisions) == (native, native, tried)
    assert native_precision("mps") == "fp32"
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert cpu().precisions == ["fp32"]


def test_a_cpu_that_emulates_bf16_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(devices, "_keep_freed_memory", lambda: None)
    devices.warn_of_emulation.cache_clear()
    monkeypatch.setattr(devices, "cpu_flags", lambda: frozenset(AVX512))
    cpu(precision="bf16").claim()
    monkeypatch.setattr(devices, "cpu_flags", lambda: frozenset({"avx2"}))
    cpu(precision="fp32").claim()
    cpu().claim()
    assert not caplog.messages
    cpu(precision="bf16").claim()
    cpu(precision="bf16").claim()
    assert caplog.messages == [
        "device.precision=bf16 is emulated on this CPU, many times slower than device.precision=fp32"
    ]


@pytest.mark.parametrize("compiler", [True, False])
def test_the_modes_of_compilation_that_are_measured(
    compiler: bool, cuda: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "g++" if compiler else None)
    assert cpu().compilations == [None]
    assert cpu(compile="auto").compilations == [None, "default"]
    on_gpu = Device(name="cuda", **LEFT_OPEN | {"compile": "auto"})
    assert (on_gpu.compilations, on_gpu.compiled) == ([None, "default", "reduce-overhead"], None)
    if compiler:
        assert cpu(compile="default").compilations == ["default"]


def test_what_is_given_is_used_and_only_what_is_left_open_is_measured() -> None:
    device = cpu()
    assert (device.memory_format, device.formats) == ("channels_last", ["channels_last", "contiguous"])
    for precision in ("fp32", "bf16"):
        for memory_format in ("contiguous", "channels_last"):
            device = cpu(precision=precision, memory_format=memory_format)
            assert (device.precision, device.precisions) == (precision, [precision])
            assert (device.memory_format, device.formats) == (memory_format, [memory_format])
            images = torch.arange(96, dtype=torch.uint8).view(2, 3, 4, 4)
            floats = device.floats(images)
            assert floats.is_contiguous(memory_format=getattr(
                torch, "channels_last" if memory_format == "channels_last" else "contiguous_format"
            ))  # fmt: skip
            assert torch.allclose(floats * 255, images.float())
            with device.autocast():
                dtype = (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
            assert dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def test_a_run_that_did_not_note_its_memory_format_is_used_in_the_default_one() -> None:
    node = {"_target_": "sslrun.device.Device", "name": "cpu", **LEFT_OPEN}
    assert inference_device(node, {"precision": "fp32"}).memory_format == "channels_last"
    given = {**node, "memory_format": "channels_last"}
    assert (
        inference_device(given, {"precision": "fp32", "memory_format": "contiguous"}).memory_format == "channels_last"
    )


@pytest.mark.parametrize(
    ("gpus", "nccl", "words"),
    [
        (1, True, "there are 1 GPUs for more processes"),
        (2, False, "several processes need NCCL, which this build of torch lacks; use device=cpu"),
        (2, True, ""),
    ],
)
def test_each_of_several_processes_has_a_gpu_of_its_own(
    gpus: int, nccl: bool, words: str, cuda: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: nccl)
    if words:
        with pytest.raises(UserError, match=words):
            Device(name="cuda", **LEFT_OPEN)
    else:
        assert Device(name="cuda", **LEFT_OPEN).torch == torch.device("cuda", 1)
    assert cpu().torch == torch.device("cpu")


def test_deterministic_algorithms_are_used_where_they_are_set(
    cuda: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs of a sweep share a process, so that the next one resets them."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        for deterministic in (False, True, False):
            Device(name="cuda", **LEFT_OPEN | {"deterministic": deterministic}).claim()
            assert torch.are_deterministic_algorithms_enabled() == deterministic
            assert not torch.backends.cudnn.allow_tf32
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
