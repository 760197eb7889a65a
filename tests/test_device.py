import json
import platform
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sslrun.device import inference_device, native_precision
from sslrun.models.backbones.smallcnn import smallcnn
from sslrun.models.encoder import Encoder
from tests.helpers import LEFT_OPEN, TINY, Cli, cpu


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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc gives memory back, and can be configured not to")
def test_freed_memory_is_kept() -> None:
    resource = pytest.importorskip("resource")
    cpu().claim()
    faults = []
    for _ in range(20):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.empty(64 << 20, dtype=torch.uint8).fill_(1)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert sorted(faults)[10] < 1000  # 16,384 pages, if they had been given back


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_training_gives_the_same_losses(cli: Cli) -> None:
    losses = []
    for compiled in ("null", "default"):
        steps = ("train.epochs=null", "train.steps=6", "train.evaluations=2", "train.log_every=1")
        done = cli("pretrain", *steps, *TINY, f"device.compile={compiled}")
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
