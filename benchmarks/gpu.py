"""What `benchmarks/gpu.sh` measures on a CUDA GPU, in addition to running every command there.

    python benchmarks/gpu.py checks RUN      a run of the GPU on the CPU; synchronizations in a training step
    python benchmarks/gpu.py speed           images/s and seconds an epoch, over the network alone, at 32 px
    python benchmarks/gpu.py speed 64        the same at 64 px
    python benchmarks/gpu.py compile         the same of SimCLR in each mode of torch.compile, over the eager network
    python benchmarks/gpu.py peer            images/s of lightly 1.6, which this Python must have, with all cores

`speed`: 50,000 random images, batches of 512, as `sslrun pretrain` trains (log_every=10), two epochs of which
the first is not counted; `network` is forward and backward of encoder and head on one batch of ready views.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from speed import bare, config_of, noise

import sslrun
from sslrun.base.machine import cores
from sslrun.config.build import build
from sslrun.device import Device
from sslrun.models.encoder import build_encoder
from sslrun.run.log import read_metrics
from sslrun.run.run import Run
from sslrun.training.autotune import choose
from sslrun.training.batches import Batches
from sslrun.training.loop import fit
from sslrun.training.optimizers import build_optimizer
from sslrun.training.state import State

SIZE, BATCH, IMAGES = 32, 512, 50_000


def train(
    pretext: str, backbone: str, images: int, steps: int, hook: Any = None, mode: str = "null", size: int = SIZE
) -> tuple[list[dict], Any, Device]:
    """Pretrain on random images on the GPU; return the rows of metrics.jsonl, the task and its device."""
    given = ("device=cuda", f"device.compile={mode}", f"train.batch_size={BATCH}")
    config = config_of(pretext, backbone, size, *given)
    device: Device = build(config["device"])
    device.claim()
    torch.manual_seed(0)
    encoder = build_encoder(config["backbone"], size, [0.5] * 3, [0.25] * 3)
    choose(device, config["backbone"], size, BATCH)
    task: Any = device.put(build(config["pretext"], encoder, size))
    device.compile(encoder)
    if hook:
        task.after_step = hook
    data = noise(images, size).on(device.torch)
    training = build({**config["train"], "epochs": None, "steps": steps, "evaluations": 1})
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), "pretrain", OmegaConf.create({}), {})
        optimizer = build_optimizer(config["optimizer"], task, training.learning_rate)
        state = State(run, task, optimizer, device, {"stage": "pretrain", "config": config}, "x")
        fit(task, Batches(data, None, BATCH, steps, 0, device), optimizer, training, device, state, dict)
        rows = read_metrics(run.directory)
        run.close("finished")
    return rows, task, device


def speed(tasks: Sequence[str], backbones: Sequence[str], modes: Sequence[str], size: int = SIZE) -> None:
    """Print images/s of training and of the network alone for every task, backbone and mode of torch.compile."""
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {IMAGES:,} images of {size} px, batch {BATCH}\n")
    print(
        "| pretext | backbone | mode | compiled | network, images/s | training, images/s | ratio | epoch, s | memory |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for backbone in backbones:
        for pretext, mode in itertools.product(tasks, modes):
            torch.compiler.reset()  # which keeps the memory of CUDA graphs
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            epoch = IMAGES // BATCH
            rows, task, device = train(pretext, backbone, IMAGES, 2 * epoch, None, mode, size)
            memory = torch.cuda.max_memory_allocated() / 2**30
            rates = [r["images_per_second"] for r in rows if "images_per_second" in r and r["step"] > epoch]
            training = statistics.harmonic_mean(rates)
            times = []
            with device.eager():
                step = bare(task, device.floats(noise(BATCH, size)[:]), device)
                for _ in range(25):
                    device.wait()
                    began = time.perf_counter()
                    step()
                    device.wait()
                    times.append(time.perf_counter() - began)
            network = BATCH / statistics.median(times[5:])
            print(
                f"| {pretext} | {backbone} | {device.precision} {device.memory_format} | {mode} | {network:,.0f} "
                f"| {training:,.0f} | {training / network:.2f} | {IMAGES / training:.2f} | {memory:.1f} GiB |",
                flush=True,
            )


def peer() -> None:
    """Print images/s of lightly's SimCLR, 20 s of each backbone after its first batch."""
    with tempfile.TemporaryDirectory() as folder:
        array = noise(IMAGES, SIZE)[:].permute(0, 2, 3, 1).numpy()
        np.savez(Path(folder) / "noise.npz", train=array, val=array[:10])
        for backbone in ("smallcnn", "resnet18"):
            script = Path(__file__).parent / "peer_scripts" / "lightly_simclr.py"
            arguments = [Path(folder) / "noise.npz", backbone, 20, 0, "", "cuda", cores()]
            command = [sys.executable, str(script), *map(str, arguments)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            print(f"lightly, {backbone}: {json.loads(done.stdout.splitlines()[-1])['images_per_second']:,.0f} images/s")


def checks(run: str) -> None:
    """Compare a classifier's confidences on GPU and CPU, and count synchronizations in five steps of each task."""
    images = list(np.random.default_rng(1).integers(0, 256, (64, SIZE, SIZE, 3), dtype=np.uint8))
    on = {d: [p.top[0].confidence for p in sslrun.load(run, device=d).predict(images)] for d in ("cuda", "cpu")}
    print(f"confidences, GPU against CPU: differ by {np.abs(np.subtract(on['cuda'], on['cpu'])).max():.1e} at most")
    for pretext in ("simclr", "rotation", "jigsaw"):
        seen: Counter[str] = Counter()

        def hook(step: int, total: int) -> None:
            torch.cuda.set_sync_debug_mode("warn" if 4 <= step < 9 else "default")

        def count(message: Any, category: Any, filename: str, lineno: int, *rest: Any, seen: Counter = seen) -> None:
            if "synchroniz" in str(message):
                seen[f"{Path(filename).parent.name}/{Path(filename).name}:{lineno}"] += 1

        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = count  # type: ignore[assignment]
            train(pretext, "smallcnn", 4 * BATCH, 12, hook)
        torch.cuda.set_sync_debug_mode("default")
        print(f"{pretext}: {sum(seen.values())} synchronizations in 5 steps {dict(seen)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["checks", "speed", "compile", "peer"])
    parser.add_argument("run", nargs="?", help="of checks; or the image size of speed")
    arguments = parser.parse_args()
    if arguments.what == "checks":
        checks(arguments.run)
    elif arguments.what == "speed":
        speed(
            ("simclr", "rotation", "jigsaw"),
            ("smallcnn", "resnet18", "mobilenetv2"),
            ["null"],
            int(arguments.run or SIZE),
        )
    elif arguments.what == "peer":
        peer()
    else:
        speed(["simclr"], ("smallcnn", "resnet18"), ("null", "default", "reduce-overhead"))
