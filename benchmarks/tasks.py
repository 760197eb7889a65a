"""Every pretext task under one protocol: images/s, settings that were tried, and (later) the table of docs/tasks.md.

    python benchmarks/tasks.py speed FOLDER                     images/s of each task, on an idle machine
    python benchmarks/tasks.py tune FOLDER [--minutes 2] [--part 0/2]
                                                                four settings of each new task, each for equal time

FOLDER: images in train/CLASS. A task gets the steps that it takes in the given minutes of one core, by the images/s in
`tasks_speed.csv`, so that the load of the machine changes no result. `tune` is resumable: rows are appended to
`tasks_tuning.csv` as they come. The score is the accuracy of nearest neighbors on held-out training images; test images
are never read.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rows import append

HERE = Path(__file__).parent
SPEED, TUNING = HERE / "tasks_speed.csv", HERE / "tasks_tuning.csv"
BATCH, WARM = 128, 30
FIXED = (
    "dataset.image_size=32", "backbone=smallcnn", f"train.batch_size={BATCH}", "device=cpu", "device.threads=1",
    "device.precision=bf16", "device.memory_format=channels_last", "train.evaluations=1",
)  # fmt: skip
# Settings other than the default; with it four for each new task.
TRIED: dict[str, tuple[str, str, str]] = {
    "moco": ("pretext.temperature=0.1", "pretext.momentum=0.9", "pretext.queue=512"),
    "byol": ("pretext.momentum=0.9", "pretext.momentum=0.996", "train.learning_rate=0.0005"),
    "simsiam": ("pretext.output_dim=128", "pretext.bottleneck=512", "train.learning_rate=0.0005"),
    "barlowtwins": ("pretext.redundancy_weight=0.02", "pretext.redundancy_weight=0.001", "pretext.output_dim=1024"),
    "vicreg": ("pretext.covariance_weight=5", "pretext.invariance_weight=5", "pretext.output_dim=1024"),
    "swav": ("pretext.prototypes=32", "pretext.temperature=0.2", "pretext.epsilon=0.03"),
    "dino": ("pretext.momentum=0.9", "pretext.output_dim=256", "pretext.teacher_temperature=0.07"),
    "amdim": ("pretext.score_weight=0", "pretext.clip=10", "pretext.output_dim=512"),
    "simclr_rotation": ("pretext.rotation_weight=0.1", "pretext.rotation_weight=1", "pretext.simclr.temperature=0.1"),
    "relative_patch": ("pretext.gap=0.3", "pretext.augment.crop_scale=[0.3,1]", "pretext.hidden_dim=128"),
    "inpainting": ("pretext.mask_ratio=0.4", "pretext.mask_ratio=0.1", "pretext.width=64"),
    "masked": ("pretext.mask_ratio=0.4", "pretext.mask_ratio=0.75", "pretext.levels=1"),
    "colorization": ("pretext.uniform=1", "pretext.bin=20", "pretext.width=64"),
    "autoencoder": ("pretext.noise=1", "pretext.drop=0.75", "pretext.width=64"),
    "vae": ("pretext.beta=0.3", "pretext.beta=3", "pretext.latent_dim=32"),
    "gan": ("pretext.latent_dim=32", "pretext.augment.crop_scale=[0.2,1]", "train.learning_rate=0.0005"),
}
OLD = ("simclr", "rotation", "jigsaw")


def pretrained(folder: Path, *arguments: str) -> dict[str, Any]:
    """Pretrain, and return the run's summary."""
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, "-m", "sslrun", "pretrain", str(folder.resolve()), *FIXED, *arguments]
        subprocess.run(command, cwd=work, check=True, stderr=subprocess.PIPE)
        (summary,) = Path(work).glob("outputs/pretrain/2*/summary.json")
        answer: dict[str, Any] = json.loads(summary.read_text())
        return answer


def speed(folder: Path) -> None:
    """Measure each task's images/s on one thread."""
    for task in (*OLD, *TRIED):
        summary = pretrained(folder, f"pretext={task}", f"train.steps={WARM}")
        rate = round(summary["images_per_second"])
        append(SPEED, {"task": task, "images_per_second": rate}, ("task", "images_per_second"))
        print(task, rate, flush=True)


def tune(folder: Path, minutes: float, part: str) -> None:
    """Pretrain with every setting, for equal time."""
    rates = {row["task"]: float(row["images_per_second"]) for row in csv.DictReader(SPEED.open())}
    done = {tuple(row.values())[:3] for row in csv.DictReader(TUNING.open())} if TUNING.exists() else set()
    index, of = map(int, part.split("/"))
    for task in [*TRIED][index::of]:
        steps = round(minutes * 60 * rates[task] / BATCH)
        for setting in ("", *TRIED[task]):
            if (folder.name, task, setting) in done:
                continue
            given = [setting] if setting else []
            summary = pretrained(folder, f"pretext={task}", f"train.steps={steps}", "train.epochs=100000", *given)
            row = {"images": folder.name, "task": task, "setting": setting, "steps": steps}
            scores = ("knn_accuracy", "feature_spread", "effective_rank", "alignment", "uniformity")
            row |= {name: round(summary[f"val/{name}"], 4) for name in scores}
            append(TUNING, row, list(row))
            print(*row.values(), flush=True)


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "tune"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--part", default="0/1", help="which share of the tasks, for several processes: 0/2 and 1/2")
    args = parser.parse_args()
    if args.what == "speed":
        speed(args.folder)
    else:
        tune(args.folder, args.minutes, args.part)


if __name__ == "__main__":
    main()
