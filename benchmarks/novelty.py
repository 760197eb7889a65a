"""Images that `sslrun predict` marks as unlike the training images: false alarms, and foreign images that are found.

    python benchmarks/novelty.py FOLDER FOLDER ... [--inits scratch pretrained] [--labels 100] [--rows novelty.csv]

FOLDER: images in train/CLASS and test/CLASS. For each of them, initialization and number of labels, one classifier is
trained at 32 px, or at the size of the published weights, and classifies the test images of every folder. Each row is
the share of one folder's test images that is marked: of the own folder false alarms, of another one those found. The
test images decide nothing.
"""

import argparse
import csv
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rows import append

COLUMNS = ("trained_on", "init", "labels", "chosen", "images_of", "images", "marked")


def sslrun(folder: Path, *arguments: str) -> str:
    """Run a command in a folder, and return its standard output."""
    command = [sys.executable, "-m", "sslrun", *arguments]
    return subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    """Train and print a row for each folder of test images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--trained-on", nargs="+", help="names of the folders that are trained on; default: all")
    parser.add_argument("--inits", nargs="+", default=["scratch", "pretrained"])
    parser.add_argument("--labels", nargs="+", default=["100"])
    parser.add_argument("--rows", type=Path, default=Path("novelty.csv"))
    args = parser.parse_args()
    done = {tuple(r.values())[:3] for r in csv.DictReader(args.rows.open())} if args.rows.exists() else set()
    for folder, init, labels in itertools.product(args.folders, args.inits, args.labels):
        if (folder.name, init, labels) in done or folder.name not in (args.trained_on or [folder.name]):
            continue
        with tempfile.TemporaryDirectory() as temporary:
            work = Path(temporary)
            data = ["dataset=folder", f"dataset.root={folder.resolve()}"]
            size = ["backbone=smallcnn", "dataset.image_size=32"] if init != "pretrained" else []
            number = [f"labels={labels}"] if labels != "all" else []
            sslrun(work, "finetune", *data, *size, f"init={init}", *number)
            summary = json.loads(next(work.glob("outputs/finetune/2*/summary.json")).read_text())
            found = []
            for other in args.folders:
                out = sslrun(work, "predict", str((other / "test").resolve()), "format=json", "figures=0")
                rows = json.loads(out)
                marked = sum(r["unlike_training"] for r in rows) / len(rows)
                row = (folder.name, init, labels, summary["chosen"], other.name, len(rows), f"{marked:.4f}")
                found.append(dict(zip(COLUMNS, map(str, row), strict=True)))
                print(*row, flush=True)
            for cells in found:  # together, so that a classifier that is interrupted is repeated
                append(args.rows, cells, COLUMNS)


if __name__ == "__main__":
    main()
