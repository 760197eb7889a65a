"""Time and memory over the number of images and steps.

    python benchmarks/growth.py [--quick]

Each point is a separate process: `sslrun pretrain` with SimCLR on `smallcnn` at 32 px, on images of noise.
Memory is the largest resident set, minus that of a process that has only imported torch and torchvision.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PROBE = """
import resource, sys, threading, time
if len(sys.argv) > 1:
    sys.argv[0] = "sslrun"
    from sslrun.cli.app import main
    try:
        main()
    except SystemExit as end:
        assert not end.code
else:
    import torch, torchvision
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(f"PEAK {peak * (1 if sys.platform == 'darwin' else 1024)}")
"""
SOURCE = """
import numpy as np
from sslrun.data.sources.source import Listing

def noise(split, *, root, images):
    if split != "train":
        return None
    items = np.load("noise.npy", mmap_mode="r")[:images]
    return Listing(items, [str(i) for i in range(len(items))])
"""
YAML = """
defaults:
  - _shared
  - _self_
_target_: noise.noise
root: null
images: 1000
"""


def peak(folder: Path, *arguments: str) -> tuple[int, float, dict]:
    """Return the largest resident set in bytes, the seconds, and the run's summary."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", PROBE, *arguments], cwd=folder, capture_output=True, text=True)
    took = time.perf_counter() - began
    if done.returncode:
        sys.exit(done.stderr)
    runs = sorted((folder / "outputs" / "pretrain").glob("*/summary.json"))
    summary = json.loads(runs[-1].read_text()) if arguments else {}
    return int(done.stdout.split("PEAK ")[1]), took, summary


def main(quick: bool) -> None:
    """Print the table of floor 7."""
    print("### 7. Growth\n")
    points = [(7_000, 10), (35_000, 10), (70_000, 10), (70_000, 20), (70_000, 40)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["SSLRUN_CACHE"] = str(folder / "cache")
        rng = np.random.default_rng(0)
        np.save(folder / "noise.npy", rng.integers(0, 256, (70_000, 32, 32, 3), dtype=np.uint8))
        (folder / "noise.py").write_text(SOURCE)
        (folder / "own" / "dataset").mkdir(parents=True)
        (folder / "own" / "dataset" / "noise.yaml").write_text(YAML)
        torch_alone = min(peak(folder)[0] for _ in range(2))
        print(
            "| images | steps | own memory, GiB | whole command, s | steps, s | images/s |\n|---|---|---|---|---|---|"
        )
        for images, steps in points if not quick else [points[0], points[4]]:
            arguments = ("pretrain", "-cd", "own", "dataset=noise", "dataset.image_size=32",
                         f"dataset.images={images}", f"train.steps={steps}", "train.evaluations=1")  # fmt: skip
            peak(folder, *arguments)  # decodes
            most, took, summary = peak(folder, *arguments)
            rate, batch = summary["images_per_second"], summary["config"]["train"]["batch_size"]
            seen = steps * images / -(-images // batch)  # batches of an epoch are of nearly equal size
            own = (most - torch_alone) / 2**30
            print(
                f"| {images:,} | {steps} | {own:.2f} | {took:.1f} | {seen / rate:.1f} | {rate:.0f} |",
                flush=True,
            )
    print(f"\nThe floor is 1.5 GiB at 70,000; torch and torchvision alone need {torch_alone / 2**30:.2f} GiB.\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer points")
    main(parser.parse_args().quick)
