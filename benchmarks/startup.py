"""How long a command takes to start, and how fast a folder of images is predicted.

    python benchmarks/startup.py [--quick]

Each round times every command once, in a separate process.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from sslrun.base.machine import cores

IMAGES = 5000
PREDICT = ("-m", "sslrun", "predict")


def seconds(folder: Path, *command: str) -> float:
    """Return how long a command takes."""
    return run(folder, *command)[0]


def run(folder: Path, *command: str) -> tuple[float, float, str]:
    """Run a command; return its seconds, the processors' seconds of it and its children, and its standard error."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *command], cwd=folder, check=True, capture_output=True, text=True)
    took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stderr


def main(quick: bool) -> None:
    """Print the table of floor 6."""
    print("### 6. Start-up and prediction\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for stage in ("pretrain", "finetune"):
            seconds(folder, "-m", "sslrun", stage, "train.steps=3", "train.evaluations=1", "dataset.image_size=32")
        rng = np.random.default_rng(0)
        (folder / "many").mkdir()
        for i in range(IMAGES):
            coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
            coarse.resize((256, 256), Image.Resampling.BICUBIC).save(folder / "many" / f"{i}.jpg", quality=90)
        commands = {
            "help": ("-m", "sslrun", "--help"),
            "torch": ("-c", "import torch, torchvision"),
            "predict": (*PREDICT, "many/0.jpg", "figures=1"),
        }
        rounds: list[dict[str, float]] = []
        for _ in range(3 if quick else 11):
            rounds.append({k: seconds(folder, *c) for k, c in commands.items()})
        rounds = rounds[1:]  # the first reads the libraries from disk

        def median(k: str) -> float:
            return statistics.median(r[k] for r in rounds)

        ratios = sorted(r["predict"] / r["torch"] for r in rounds)
        print(f"- `sslrun --help`: {median('help'):.2f} s (floor 0.5).")
        print(
            f"- `sslrun predict` of one image: {median('predict'):.2f} s; importing torch and torchvision alone: "
            f"{median('torch'):.2f} s; ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}; "
            f"floor 1.5; n = {len(rounds)})."
        )
        rates, busy = [], []
        for _ in range(1 if quick else 5):
            wall, processor, _ = run(folder, *commands["predict"])
            wall_many, processor_many, answer = run(folder, *PREDICT, "many", "format=csv", "figures=1")
            rates.append(float(answer.split(" images/s")[0].split()[-1].replace(",", "")))
            busy.append((processor_many - processor) / (wall_many - wall))
        print(
            f"- `sslrun predict many/`, {IMAGES:,} JPEG files of 256 px, `smallcnn` at 32 px: "
            f"{statistics.median(rates):,.0f} images/s, {statistics.median(busy):.2f} of {cores()} cores busy "
            f"beyond those of one image (n = {len(rates)}).\n"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    main(parser.parse_args().quick)
