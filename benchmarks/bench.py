"""Run the benchmarks and write RESULTS.md, next to this file.

    make bench                                  about 15 minutes: fewer rounds, 4a on digits with one seed, without 4b
    make bench-full BENCH="--fashion DIR --folder DIR"      hours: 3 seeds, all rounds, two data sets

Sections that are run replace those of the same title in RESULTS.md; the others stay, each with its own date.
"""

import argparse
import datetime
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
HEAD = """# Results of `make bench`

The last line of each section names the script that wrote it. Ratios compare two sides that ran alternately within one
run; absolute numbers depend on the machine and its load. What was tried and why: [README.md](README.md).
"""
ACCURACY = """### 4a. Accuracy per second: nearest neighbors after equal seconds of SimCLR

`smallcnn`, 32 px, defaults of `sslrun pretrain`; lightly as in section 3. kNN accuracy on validation in %, mean and
95 % CI (Student's t) over seeds; `random` is the network before its first step.

| data | by | images seen | seconds | n | kNN accuracy |
|---|---|---|---|---|---|"""
RECIPE = """### 4b. Accuracy per second: the tutorial in full against two commands

Test accuracy in % with 10 % of the labels. The tutorial's seconds are its loops alone, ours are the whole commands.

| data | by | seconds | n | test accuracy |
|---|---|---|---|---|"""


def sections(fashion: str | None, folder: str | None, quick: bool) -> list[tuple[str, str, list[list[str]]]]:
    """Return the number, the heading (empty where the script prints its own) and the commands of each section."""
    short = ["--quick"] if quick else []
    data = [["dataset=digits"]] if not fashion and not folder else []
    data += [["dataset=fashion_mnist", f"dataset.root={fashion}"]] if fashion else []
    data += [["dataset=folder", f"dataset.root={folder}"]] if folder else []
    budget = ["--seconds", "8", "--seeds", "1"] if quick else ["--seconds", "300", "--seeds", "3"]
    small = [d for d in data if "fashion" not in d[0]]  # 50 epochs of 60,000 images take hours
    every = [
        ("1", "", [["speed.py", "overhead", *short]]),
        ("2", "", [["speed.py", "modes", *short]]),
        ("3", "", [["peers.py", "speed", *short]]),
        (
            "4a",
            ACCURACY.replace("4a.", "4a, quick.") if quick else ACCURACY,
            [["peers.py", "accuracy", *budget, *d] for d in data],
        ),
        ("4b", RECIPE, [["peers.py", "recipe", "--seeds", "3", *d] for d in small]),
        ("6", "", [["startup.py", *short]]),
        ("7", "", [["growth.py", *short]]),
    ]
    return [s for s in every if not (quick and s[0] == "4b")]  # in full or not at all


def machine() -> str:
    """Return one line with the machine and the versions."""
    import torch

    from sslrun.base.machine import processor

    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "torchvision", "numpy"))
    return (
        f"{processor()}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
        f"{gpu}, {platform.system()}, Python {platform.python_version()}, {packages}, sslrun {version('sslrun')}"
    )


def main(fashion: str | None, folder: str | None, quick: bool, only: str) -> None:
    """Run the sections and store each as soon as it is done."""
    began = time.monotonic()
    failed = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["SSLRUN_CACHE"] = cache
        for number, heading, commands in sections(fashion, folder, quick):
            if only and number not in only.split(","):
                continue
            text = heading + "\n" * bool(heading)
            for command in commands:
                print(f"{time.monotonic() - began:5.0f} s  {number}: {' '.join(command)}", file=sys.stderr, flush=True)
                call = [sys.executable, str(HERE / command[0]), *command[1:]]
                done = subprocess.run(call, stdout=subprocess.PIPE, text=True)
                text += done.stdout
                if done.returncode:
                    failed.append(number)
            if number in failed:
                print(f"section {number} failed; its old text in RESULTS.md is kept", file=sys.stderr)
                continue
            answer = "; ".join("`benchmarks/" + " ".join(_private(c)) + "`" for c in commands)
            keep(text.rstrip() + f"\n\n{datetime.date.today()}, {machine()}. {answer}\n")
    print(f"{time.monotonic() - began:5.0f} s  written to {RESULTS}", file=sys.stderr)
    if failed:
        sys.exit(1)


def _private(command: list[str]) -> list[str]:
    """Remove the folder of a data set from a command."""
    return [re.sub(r"root=.*/", "root=", part) for part in command]


def keep(section: str) -> None:
    """Put a section into RESULTS.md in place of the one with the same number."""
    text = RESULTS.read_text() if RESULTS.exists() else HEAD
    head, *old = re.split(r"(?m)^(?=### )", text)
    number = section.splitlines()[0].split(". ")[0]  # 4a, quick is not in place of 4a
    others = [s for s in old if s.splitlines()[0].split(". ")[0] != number]
    RESULTS.write_text(head.rstrip() + "\n\n" + "\n".join(sorted([*(o.rstrip() + "\n" for o in others), section])))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, one seed")
    parser.add_argument("--fashion", help="folder of Fashion-MNIST's four files")
    parser.add_argument("--folder", help="a folder of images, one folder per class")
    parser.add_argument("--only", default="", help="numbers of sections, such as 1,4a")
    args = parser.parse_args()
    places = [str(Path(p).expanduser().resolve()) if p else None for p in (args.fashion, args.folder)]
    main(places[0], places[1], args.quick, args.only)
