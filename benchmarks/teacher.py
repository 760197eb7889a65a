"""What a distillation costs: the teacher's pass over the images, and a step of the student.

    python benchmarks/teacher.py [--rounds 7] [--threads 1]

Both sides of a ratio run alternately in one process, so that other load affects both.

1. images/s of the teacher's features of decoded images, uint8 in memory, over the network alone on ready batches
2. images/s of a distillation step over those of SimCLR's, with the same student, batch and mode
"""

import argparse
import statistics
import time
from typing import Any

import numpy as np
import torch
from speed import config_of, noise

from sslrun.config.build import build
from sslrun.device import Device
from sslrun.models.encoder import build_encoder
from sslrun.models.features import features
from sslrun.models.published import published
from sslrun.models.teacher import teacher_of
from sslrun.tasks.pretext.distill import Distill
from sslrun.training.estimate import measure

SIZE, BATCH, IMAGES = 192, 64, 256


def teacher(device: Device, rounds: int) -> None:
    """Print the speed of the teacher's features at 192 px."""
    network = teacher_of(None, None).name
    device.use_native()
    encoder = device.put(build_encoder(published({}).backbone, SIZE, [0.5] * 3, [0.5] * 3).eval())
    images = noise(IMAGES, SIZE)
    ready = [device.floats(chunk) for chunk in images.split(BATCH)]
    alone, whole = [], []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        with torch.no_grad(), device.autocast():
            for batch in ready:
                encoder(batch)
        device.wait()
        alone.append(time.perf_counter() - began)
        began = time.perf_counter()
        features(encoder, images, device, BATCH)  # type: ignore[arg-type]
        whole.append(time.perf_counter() - began)
    ratio = statistics.median(a / b for a, b in zip(alone[1:], whole[1:], strict=True))
    a, b = (IMAGES / statistics.median(times[1:]) for times in (alone, whole))
    mode = f"{device.precision} {device.memory_format}"
    print(f"{network} at {SIZE} px, {mode}: network alone {a:.0f} images/s, features {b:.0f} images/s, {ratio:.3f}")


def student(rounds: int, *more: str) -> None:
    """Print the speed of a distillation step and of SimCLR's, with `smallcnn` at 32 px."""
    rates: dict[str, list[float]] = {"distill": [], "simclr": []}
    tasks: dict[str, Any] = {}
    data = noise(2000, 32)
    for pretext in rates:
        config = config_of(pretext, "smallcnn", 32, *more)
        device: Device = build(config["device"])
        torch.manual_seed(0)
        encoder = build_encoder(config["backbone"], 32, [0.5] * 3, [0.25] * 3)
        tasks[pretext] = device.put(build(config["pretext"], encoder, 32))
    distill: Distill = tasks["distill"]
    distill.features = np.random.default_rng(0).random((len(data), len(distill.mean)), dtype=np.float32).astype("f2")
    for _ in range(rounds + 1):
        for pretext, task in tasks.items():
            speed = measure(task, data, device, config["optimizer"], 128, 2**40).images_per_second
            rates[pretext].append(speed)
    ratio = statistics.median(a / b for a, b in zip(rates["distill"][1:], rates["simclr"][1:], strict=True))
    distilled, contrasted = (statistics.median(rates[p][1:]) for p in ("distill", "simclr"))
    mode = f"{device.precision} {device.memory_format}"
    print(f"smallcnn at 32 px, {mode}: distill {distilled:.0f} images/s, simclr {contrasted:.0f} images/s, {ratio:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", default="null")
    args = parser.parse_args()
    more = (f"device.threads={args.threads}",)
    device: Device = build(config_of("simclr", "smallcnn", 32, *more)["device"])
    device.claim()
    print(f"{device.describe()}, torch {torch.__version__}")
    teacher(device, args.rounds)
    for precision, memory_format in (("bf16", "channels_last"), ("bf16", "contiguous"), ("fp32", "contiguous")):
        student(args.rounds, *more, f"device.precision={precision}", f"device.memory_format={memory_format}")


if __name__ == "__main__":
    main()
