"""On a CUDA GPU: the numbers of a CPU, no step that waits for the GPU, memory that does not grow.

`python -m pytest tests/gpu` on a machine that has one; elsewhere these tests are skipped.
"""

import gc
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import sslrun
from sslrun.augment import Augment, Rng, generator
from sslrun.base import processes
from sslrun.base.batch_norm import Synchronized, synchronize
from sslrun.data.images import Images, digests
from sslrun.device import Device
from sslrun.models.encoder import grid_average
from sslrun.tasks.task import Task
from sslrun.training import compilation
from sslrun.training.batches import Batches
from sslrun.training.loop import train_step
from sslrun.training.optimizers import build_optimizer
from tests.every_task import FINETUNING, IMAGES, PRETEXT, task_named
from tests.helpers import ADAMW, BACKBONES, LEFT_OPEN, SGD, STRONG, Cli, MeanTask, cpu, ramp, runs, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
LARS = {"_target_": "sslrun.training.optimizers.lars", "weight_decay": 1e-4, "momentum": 0.9, "trust": 0.001}
EVERY = [*PRETEXT, FINETUNING]
BATCH = 16
SMALL_DIGITS = ("dataset=digits", "dataset.max_images=300", "dataset.image_size=16", "backbone.widths=[8,16]")


def gpu(**keys: Any) -> Device:
    return Device(name="cuda", **{**LEFT_OPEN, **keys})


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """Compute convolutions in fp32 where the test says fp32: by default cuDNN rounds to 10 bits there (TF32)."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
    torch.use_deterministic_algorithms(False)
    torch.cuda.set_sync_debug_mode("default")


def noise(n: int = IMAGES) -> Images:
    array = torch.randint(256, (n, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Images([array], digests(array.numpy()))


def steps_of(name: str, device: Device, steps: int, optimizer: dict[str, Any] = SGD) -> Iterator[tuple[Task, Any, Any]]:
    """Yield a task, its optimizer and each step; the images are on the device."""
    task = task_named(name)
    device.put(task)
    labels = (torch.arange(IMAGES) % 3).to(device.torch) if name == FINETUNING else None
    built = build_optimizer(optimizer, task, 0.01)
    for step in Batches(noise().on(device.torch), labels, BATCH, steps, 0, device).after(0):
        yield task, built, step


def flat(parts: Iterable[Tensor]) -> Tensor:
    return torch.cat([p.detach().double().cpu().flatten() for p in parts])


# The numbers of a CPU


@pytest.mark.parametrize("blur", [0.0, 0.5])
def test_views_are_those_of_a_cpu(blur: float) -> None:
    images = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    augment = Augment(**STRONG | {"blur": blur, "probability": 0.8})
    on_cpu, on_gpu = (augment(images.to(d), Rng(generator(0))).cpu() for d in ("cpu", "cuda"))
    assert not torch.equal(on_cpu, images)
    torch.testing.assert_close(on_gpu, on_cpu, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", EVERY)
def test_the_first_loss_and_its_gradients_are_those_of_a_cpu(name: str) -> None:
    found = []
    for device in (cpu(precision="fp32"), gpu(precision="fp32")):
        task, optimizer, step = next(steps_of(name, device, 1))
        out = train_step(task, step, 1, optimizer, device, None)
        assert torch.equal(step.batch["rows"], torch.randperm(IMAGES, generator=generator(0, 0, 0))[:BATCH])
        found.append((float(out["loss"]), flat(p.grad for p in task.parameters() if p.grad is not None)))
    (loss, gradient), (on_gpu, gradient_on_gpu) = found
    assert on_gpu == pytest.approx(loss, rel=1e-4, abs=1e-5)
    assert (gradient_on_gpu - gradient).norm() <= 1e-3 * gradient.norm()


def test_a_classifier_predicts_as_on_a_cpu(cli: Cli, tmp_path: Path) -> None:
    """Through all commands; the checkpoint of a GPU is read without one."""
    common = ("train.steps=20", "device=cuda", "device.precision=fp32")
    assert cli("pretrain", *SMALL_DIGITS, *common).code == 0
    assert cli("finetune", "init=latest", "labels_per_class=10", "mode=finetune", *common).code == 0
    assert cli("evaluate", "device=cuda").code == 0
    content = torch.load(runs("finetune")[-1] / "best.pt", weights_only=False)
    assert {v.device.type for v in content["model"].values()} == {"cpu"}
    images = [image.permute(1, 2, 0).numpy() for image in torch.randint(256, (40, 3, 32, 32), dtype=torch.uint8)]
    on_gpu, on_cpu = (sslrun.load(device=d).predict(images) for d in ("cuda", "cpu"))
    for one, other in zip(on_gpu, on_cpu, strict=True):
        assert one.top[0].confidence == pytest.approx(other.top[0].confidence, abs=2e-3)


@pytest.mark.parametrize("side", [1, 2, 3, 5, 8])
def test_pooling_on_a_grid_is_that_of_a_cpu(side: int) -> None:
    maps = torch.randn(4, 6, side, side)
    torch.testing.assert_close(grid_average(maps.cuda()).cpu(), grid_average(maps), rtol=0, atol=1e-6)


# No step waits


@pytest.mark.parametrize("name", EVERY)
def test_no_step_waits_for_the_gpu(name: str) -> None:
    device = gpu(precision="bf16", memory_format="channels_last")
    for task, optimizer, step in steps_of(name, device, 9, ADAMW):
        if step.step == 4:  # kernels are chosen, memory is reserved
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
        train_step(task, step, 9, optimizer, device, 1.0)
    torch.cuda.set_sync_debug_mode("default")


def test_batches_of_images_in_main_memory_are_copied_from_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[bool] = []
    floats = Device.floats

    def watched(self: Device, images: Tensor) -> Tensor:
        pinned.append(images.is_pinned())
        return floats(self, images)

    monkeypatch.setattr(Device, "floats", watched)
    device = gpu()
    seen = [step.batch["images"] for step in Batches(noise(), None, BATCH, 5, 0, device).after(0)]
    resident = [s.batch["images"] for s in Batches(noise().on(device.torch), None, BATCH, 5, 0, device).after(0)]
    assert pinned[:5] == [True] * 5
    assert all(torch.equal(a, b) for a, b in zip(seen, resident, strict=True))


# Precision, compilation, determinism


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_precision_and_memory_format_are_what_they_say(precision: str, dtype: torch.dtype, memory_format: str) -> None:
    device = gpu(precision=precision, memory_format=memory_format)
    task, optimizer, step = next(steps_of("simclr", device, 1))
    seen: list[Tensor] = []
    for module in task.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _m, _i, out: seen.append(out))
    loss = train_step(task, step, 1, optimizer, device, None)["loss"]
    assert {x.dtype for x in seen} == {dtype}
    assert all(x.is_contiguous(memory_format=device.format) for x in seen if x.shape[2] > 1)
    assert loss.dtype == torch.float32
    assert {p.dtype for p in task.parameters()} == {torch.float32}


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("name", ["simclr", "simclr_rotation", "moco", "gan", "masked", FINETUNING])
def test_compiled_steps_train_as_eager_ones(name: str, mode: str) -> None:
    losses = []
    for compiled in (None, mode):
        device, row = gpu(precision="fp32", compile=compiled), []
        for task, optimizer, step in steps_of(name, device, 30):
            if step.step == 0:
                device.compile(getattr(task, "encoder", None) or task.get_submodule(task.downstream))  # no teacher
            row.append(train_step(task, step, 30, optimizer, device, None)["loss"].clone())
        losses.append(torch.stack(row).cpu())
    torch.testing.assert_close(losses[1][:5], losses[0][:5], rtol=1e-3, atol=1e-3)
    assert float(losses[1][-5:].mean()) == pytest.approx(float(losses[0][-5:].mean()), rel=0.05)


def test_measuring_the_modes_of_compilation_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "SHORTEST", 0.0)
    device, state, left = gpu(precision="bf16", compile="auto"), torch.cuda.get_rng_state(), []
    for i in range(3):  # the first reserves the workspaces of libraries
        backbone = BACKBONES["smallcnn"] | {"widths": [16, 32 + i]}  # no rates are cached
        compilation.choose(device, backbone, 32, 64, 10_000)
        left.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    assert left[1] == left[2]
    assert torch.equal(torch.cuda.get_rng_state(), state)


@pytest.mark.parametrize("name", sorted({*EVERY} - {"gan"}))  # its gradient goes through grid_sample; torch warns
def test_deterministic_trainings_have_the_same_bits(name: str) -> None:
    weights = []
    for _ in range(2):
        device = gpu(precision="bf16", deterministic=True)
        device.claim()
        for task, optimizer, step in steps_of(name, device, 10):
            train_step(task, step, 10, optimizer, device, None)
        weights.append(flat(task.state_dict().values()))
    assert torch.equal(*weights)


@pytest.mark.parametrize("optimizer", [ADAMW, SGD, LARS], ids=["adamw", "sgd", "lars"])
@pytest.mark.parametrize(("first", "then"), [("cuda", "cuda"), ("cuda", "cpu"), ("cpu", "cuda")])
def test_a_training_is_resumed_on_another_device(first: str, then: str, optimizer: dict[str, Any]) -> None:
    """Two evaluations: one is interrupted after the first half has been saved."""
    devices = {name: Device(name=name, **LEFT_OPEN | {"precision": "fp32"}) for name in ("cpu", "cuda")}
    whole: Any = devices[first].put(MeanTask())
    keys: dict[str, Any] = {"steps": 8, "evaluations": 2, "keep_every": 4, "optimizer": optimizer}
    train(whole, ramp(32), "whole", device=devices[first], **keys)
    stopped: Any = devices[first].put(Stopping())
    with pytest.raises(RuntimeError, match="stopped"):
        train(stopped, ramp(32), "run", device=devices[first], **keys)
    resumed: Any = devices[then].put(MeanTask())
    train(resumed, ramp(32), "run", resumed=True, device=devices[then], **keys)
    torch.testing.assert_close(flat(resumed.parameters()), flat(whole.parameters()), rtol=1e-5, atol=1e-6)


class Stopping(MeanTask):
    def before_step(self, step: int, total: int) -> None:
        if step == 6:
            raise RuntimeError("stopped")


# Memory


def test_all_batches_have_one_shape_and_memory_does_not_grow() -> None:
    device, most, shapes = gpu(), [], set()
    for task, optimizer, step in steps_of("simclr", device, 30):
        shapes.add(step.batch["images"].shape)
        train_step(task, step, 30, optimizer, device, None)
        if step.step in (9, 29):
            most.append(torch.cuda.max_memory_allocated())
    assert len(shapes) == 1
    assert most[0] == most[1]


def test_trainings_leave_no_memory_behind() -> None:
    left = []
    for _ in range(3):
        device = gpu()
        for task, optimizer, step in steps_of("simclr", device, 3):
            train_step(task, step, 3, optimizer, device, None)
        del task, optimizer, step
        gc.collect()
        left.append(torch.cuda.memory_allocated())
    assert left[1] == left[2]


def test_where_memory_is_full_the_batch_that_fits_is_named(cli: Cli) -> None:
    """As much memory is taken as leaves room for a small batch alone."""
    free = torch.cuda.mem_get_info()[0]
    taken = torch.empty(free - (600 << 20), dtype=torch.uint8, device="cuda")
    answer = cli("pretrain", "dataset=digits", "dataset.image_size=64", "train.batch_size=1024", "train.steps=2",
                 "device=cuda", "device.precision=fp32", "device.memory_format=channels_last")  # fmt: skip
    del taken
    assert answer.code == 1
    assert "out of GPU memory with batches of" in answer.err.splitlines()[-1]
    assert "fit, as measured: train.batch_size=" in answer.err.splitlines()[-1]


# Several GPUs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last", "rows"])
def test_batch_norm_of_several_gpus_is_that_of_one(
    dtype: torch.dtype, memory_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a group of one process, which goes the way of several."""
    dist.init_process_group("cpu:gloo,cuda:nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        x = torch.randn(12, 8, 6, 6, device="cuda").mul(3).add(1).to(dtype)
        if memory_format == "rows":
            x = x.mean((2, 3))
        if memory_format == "channels_last":
            x = x.contiguous(memory_format=torch.channels_last)
        upstream, found = torch.randn_like(x), []
        for several in (False, True):
            norm: Any = (nn.BatchNorm1d if x.ndim == 2 else nn.BatchNorm2d)(8).cuda()
            nn.init.uniform_(norm.weight, 0.5, 2, generator=torch.Generator("cuda").manual_seed(0))
            inputs = x.clone().requires_grad_()
            with monkeypatch.context() as patch:
                if several:  # as `synchronize` and the layer see it; its messages have the rows of one
                    counts = iter([2, 2])
                    patch.setattr(processes, "count", lambda counts=counts: next(counts, 1))
                    synchronize(norm)
                assert isinstance(norm, Synchronized) == several
                out = norm(inputs)
                out.backward(upstream)
            found.append([out, inputs.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var])
        for one, other in zip(*found, strict=True):
            tolerance = 1e-4 if dtype == torch.float32 else 5e-2
            torch.testing.assert_close(other.float(), one.float(), rtol=tolerance, atol=tolerance)
            assert other.stride() == one.stride()
    finally:
        dist.destroy_process_group()
