"""Wrong labels that `sslrun data doubt` finds, in a folder of images some of whose labels were changed at random.

    python benchmarks/doubt.py FOLDER [--init pretrained] [--wrong 0.05] [--seeds 3]

FOLDER: images in train/CLASS. For each seed a fraction of the labels of all training images is changed to another
class, in a label file, and a linear probe is trained on all of them. Printed are the precision among the first 50
doubts, and the share of the wrong labels that is among all doubts. The images are not changed.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

FIRST = 50


def sslrun(folder: Path, *arguments: str) -> str:
    """Run a command in a folder, and return its standard output."""
    command = [sys.executable, "-m", "sslrun", *arguments]
    return subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout


def measured(folder: Path, init: str, wrong: float, seed: int) -> tuple[float, float, int]:
    """Return the precision among the first doubts, the share of wrong labels found, and the number of doubts."""
    files = sorted(folder.glob("train/*/*"))
    names = sorted({f.parent.name for f in files})
    rng = np.random.default_rng(seed)
    changed = set(rng.choice(len(files), round(wrong * len(files)), replace=False).tolist())
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        with (work / "labels.csv").open("w", newline="") as table:
            writer = csv.writer(table)
            writer.writerow(["file", "label"])
            for i, file in enumerate(files):
                label = names.index(file.parent.name)
                if i in changed:
                    label = (label + int(rng.integers(1, len(names)))) % len(names)
                writer.writerow([file.relative_to(folder).as_posix(), names[label]])
        data = ["dataset=folder", f"dataset.root={folder}", f"dataset.labels={work / 'labels.csv'}"]
        sslrun(work, "finetune", *data, f"init={init}", "mode=probe")
        out = sslrun(work, "data", "doubt", "n=100000", "format=csv")
    doubts = [Path(row["image"]) for row in csv.DictReader(out.splitlines())]
    of = {file: i in changed for i, file in enumerate(files)}
    right = [of[file] for file in doubts]
    return float(np.mean(right[:FIRST])), sum(right) / len(changed), len(doubts)


def main() -> None:
    """Print a row for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--init", default="pretrained")
    parser.add_argument("--wrong", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    for seed in range(args.seeds):
        precision, found, doubts = measured(args.folder.resolve(), args.init, args.wrong, seed)
        share = f"{found:.2f} of the wrong labels are among {doubts} doubts"
        print(f"seed {seed}: precision among the first {FIRST} {precision:.2f}; {share}")


if __name__ == "__main__":
    main()
