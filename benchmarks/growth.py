"""Time and memory over the number of images, steps and processes.

    python benchmarks/growth.py [--quick]           images and steps
    python benchmarks/growth.py --processes         1,000 to 1,000,000 images, in 1, 2 and 4 processes

Each point is a separate command: `sslrun pretrain` with SimCLR on `smallcnn` at 32 px, on images of noise, with one
thread a process. Memory of one process is the largest resident set, minus that of a process that has only imported
torch and torchvision. That of several is the largest sum of their proportional sets: a page that several map is
divided among them. The images are mapped from the cache; the last two rows read all of 3 GB of them, with a network
of a few channels.
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


def proportional(pids: list[int]) -> tuple[int, int]:
    """Return the anonymous and the mapped part of the proportional sets of some processes, in bytes."""
    sums = {"Pss_Anon:": 0, "Pss_File:": 0}
    for pid in pids:
        try:
            rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended
            continue
        for name, *values in map(str.split, rows):
            if name in sums:
                sums[name] += 1024 * int(values[0])
    return sums["Pss_Anon:"], sums["Pss_File:"]


def several(folder: Path, processes: int, *arguments: str) -> tuple[tuple[int, int], dict]:
    """Run `sslrun pretrain` in several processes; return their largest proportional sets, and the summary."""
    alone = [sys.executable, "-m", "sslrun", "pretrain"]
    together = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc-per-node={processes}",
        "-m",
        "sslrun",
        "pretrain",
    ]
    command = [*(alone if processes == 1 else together), *arguments, f"hydra.run.dir={folder}/run{time.time_ns()}"]
    running = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    largest = (0, 0)
    while running.poll() is None:
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
        pids = [running.pid] if processes == 1 else [int(p) for p in children.read_text().split()]
        largest = max(largest, proportional(pids), key=sum)
        time.sleep(1)
    if running.returncode:
        sys.exit(running.stderr.read().decode())  # type: ignore[union-attr]
    newest = max(folder.glob("run*/summary.json"), key=lambda path: path.stat().st_mtime)
    return largest, json.loads(newest.read_text())


def over_processes() -> None:
    """Print the table over images and processes."""
    row = "| {:,} | {} | {} | {:.0f} | {:.2f} | {:.2f} |"
    print("| images | px | processes | images/s | own memory, GiB | mapped files, GiB |\n|---|---|---|---|---|---|")
    common = ["-cd", "own", "dataset=noise", "train.evaluations=1", "device=cpu", "device.threads=1"]
    common += ["device.precision=bf16", "device.memory_format=channels_last"]
    few = ("backbone.widths=[8,16]", "pretext=rotation", "pretext.copies=1", "train.batch_size=1024", "train.epochs=1")
    for n, size, steps, more in [
        *((n, 32, 40, ("train.batch_size=256", "train.epochs=null")) for n in (1_000, 10_000, 100_000, 1_000_000)),
        (250_000, 64, None, few),
    ]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            os.environ |= {"SSLRUN_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
            noise = np.lib.format.open_memmap(folder / "noise.npy", "w+", np.uint8, (n, size, size, 3))
            for i in range(0, n, 10_000):
                noise[i : i + 10_000] = np.random.default_rng(i).integers(0, 256, noise[i : i + 10_000].shape, np.uint8)
            noise.flush()
            (folder / "noise.py").write_text(SOURCE)
            (folder / "own" / "dataset").mkdir(parents=True)
            (folder / "own" / "dataset" / "noise.yaml").write_text(YAML)
            given = (*common, f"dataset.images={n}", f"dataset.image_size={size}", *more)
            several(folder, 1, *given, "train.steps=1")  # fills the cache
            for processes in (1, 2, 4) if steps else (1, 4):
                (own, mapped), summary = several(folder, processes, *given, f"train.steps={steps or 'null'}")
                rate = summary["images_per_second"]
                print(row.format(n, size, processes, rate, own / 2**30, mapped / 2**30), flush=True)


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
    parser.add_argument("--processes", action="store_true", help="images and processes")
    args = parser.parse_args()
    if args.processes:
        over_processes()
    else:
        main(args.quick)
