"""Every pretext task under one protocol: images/s, the settings that were tried, and the table of docs/tasks.md.

    python benchmarks/tasks.py speed FOLDER        images/s of each task on one core of an idle machine
    python benchmarks/tasks.py tune DATA ...       four settings of each new task, each for 2 minutes
    python benchmarks/tasks.py table DATA ...      every task: features, and probes at two label budgets
        [--seeds 0,1] [--only TASK,...] [--factor 3] [--device cuda] [--workers 2] [--rows FOLDER]

DATA is the name of a data set in MINUTES and its overrides: "emoji dataset=folder dataset.root=photos". A task gets the
steps that it takes in these minutes of one core, by the images/s in `tasks_speed.csv`, so that the load of a machine
changes nothing; a GPU rounds differently, so compare rows of one device. `--factor 3` trains three times as long. A
training is that of `sslrun pretrain`, with `smallcnn` at 32 px, in bf16. Rows are appended to `tasks_tuning.csv`,
`tasks.csv` and `tasks_probes.csv` as they come, and those that are there are not measured again.

The score of `tune` is the accuracy of nearest neighbors on held-out training images; it never reads a test split.
"""

import argparse
import csv
import json
import multiprocessing
import shlex
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import OmegaConf
from rows import append
from sklearn.metrics import f1_score
from torch import Tensor

from sslrun.base.errors import UserError
from sslrun.config.build import build
from sslrun.config.compose import compose_config
from sslrun.data.dataset import Dataset, load_test, load_train
from sslrun.data.labels import LabelBudget, folds
from sslrun.data.statistics import normalization
from sslrun.device import Device
from sslrun.evaluation.selection import Predictions, corrected_accuracy
from sslrun.evaluation.validation import encoder_metrics, knn_images
from sslrun.models.encoder import Encoder, build_encoder
from sslrun.models.features import pooled_features
from sslrun.tasks.task import Task, build_task
from sslrun.training.batches import Batches
from sslrun.training.frozen import Frozen
from sslrun.training.loop import train_step
from sslrun.training.optimizers import build_optimizer
from sslrun.training.settings import Training

HERE = Path(__file__).parent
BATCH, WARM, SUBSETS, FOLDS = 128, 30, 3, 5
MINUTES = {"fashion_mnist": 4.0, "emoji": 2.0, "solar_cells": 2.0}  # of one core
PER_CLASS = {"fashion_mnist": (5, 20), "emoji": (5, 20), "solar_cells": (25, 100)}  # labels
SETTINGS = ("dataset.image_size=32", "backbone=smallcnn", f"train.batch_size={BATCH}", "train.epochs=null")
MODE = ("device.threads=1", "device.precision=bf16", "device.memory_format=channels_last")
UNTRAINED = "none"
OLD = ("simclr", "rotation", "jigsaw")
# The settings of each new task: that of its paper, where it is not the default ("") any more, and three others.
TRIED: dict[str, tuple[str, str, str, str]] = {
    "moco": ("pretext.temperature=0.2", "pretext.temperature=0.1", "pretext.momentum=0.9", "pretext.queue=512"),
    "byol": ("", "pretext.momentum=0.9", "pretext.momentum=0.996", "train.learning_rate=0.0005"),
    "simsiam": ("", "pretext.output_dim=128", "pretext.bottleneck=512", "train.learning_rate=0.0005"),
    "barlowtwins": (
        "pretext.redundancy_weight=0.005",
        "pretext.redundancy_weight=0.02",
        "pretext.redundancy_weight=0.001",
        "pretext.output_dim=1024",
    ),
    "vicreg": (
        "pretext.invariance_weight=25",
        "pretext.covariance_weight=5",
        "pretext.invariance_weight=5",
        "pretext.output_dim=1024",
    ),
    "swav": ("pretext.epsilon=0.05", "pretext.prototypes=32", "pretext.temperature=0.2", "pretext.epsilon=0.03"),
    "dino": (
        "pretext.output_dim=1024",
        "pretext.momentum=0.9",
        "pretext.output_dim=256",
        "pretext.teacher_temperature=0.07",
    ),
    "amdim": ("", "pretext.score_weight=0", "pretext.clip=10", "pretext.output_dim=512"),
    "simclr_rotation": (
        "",
        "pretext.rotation_weight=0.1",
        "pretext.rotation_weight=1",
        "pretext.simclr.temperature=0.1",
    ),
    "relative_patch": (
        "pretext.hidden_dim=512",
        "pretext.gap=0.3",
        "pretext.augment.crop_scale=[0.3,1]",
        "pretext.hidden_dim=128",
    ),
    "inpainting": ("pretext.mask_ratio=0.25", "pretext.mask_ratio=0.4", "pretext.mask_ratio=0.1", "pretext.width=64"),
    "masked": ("pretext.levels=3", "pretext.mask_ratio=0.4", "pretext.mask_ratio=0.75", "pretext.levels=1"),
    "colorization": ("", "pretext.uniform=1", "pretext.bin=20", "pretext.width=64"),
    "autoencoder": ("", "pretext.noise=1", "pretext.drop=0.75", "pretext.width=64"),
    "vae": ("pretext.beta=1", "pretext.beta=0.3", "pretext.beta=3", "pretext.latent_dim=32"),
    "gan": ("", "pretext.latent_dim=32", "pretext.augment.crop_scale=[0.2,1]", "train.learning_rate=0.0005"),
}
KEY = ("data", "task", "setting", "steps", "device", "seed")  # of a training
METRICS = ("knn_accuracy", "feature_spread", "effective_rank", "alignment", "uniformity")
ROW = (*KEY, *METRICS)
PROBE = (*KEY, "labels_per_class", "subset", "val_accuracy", "test_accuracy", "test_f1_macro")


@dataclass(frozen=True)
class Job:
    """A training, and where it runs.

    Attributes:
        data: name of the data set.
        overrides: of the data set and the device.
        task: a pretext task, or `none` for random weights.
        setting: an override of the task's, or "".
        steps: of the training.
        device: cpu or cuda.
        probed: also evaluate logistic regressions on the features.
    """

    data: str
    overrides: tuple[str, ...]
    task: str
    setting: str
    steps: int
    device: str
    seed: int
    probed: bool

    @property
    def key(self) -> dict[str, Any]:
        """The columns that name it in a file of rows."""
        return {name: getattr(self, name) for name in KEY}


class Loaded(NamedTuple):
    """A data set in memory, and its images on the device."""

    train: Dataset
    images: Any
    knn: tuple[Dataset, Dataset] | None


@cache
def loaded(overrides: tuple[str, ...]) -> tuple[Loaded, Device]:
    """Load a data set, once in each process."""
    torch.set_num_threads(1)
    config = composed(overrides)
    device: Device = build(config["device"])
    device.claim()
    train, given = load_train(config["dataset"])
    return Loaded(train, train.images.on(device.torch), knn_images(train, given)), device


@cache
def tested_on(overrides: tuple[str, ...]) -> Dataset:
    """Load the test split, once in each process that probes."""
    return load_test(composed(overrides)["dataset"])


def composed(overrides: Iterable[str]) -> Any:
    """Return the config of `sslrun pretrain` with these overrides."""
    return OmegaConf.to_container(compose_config("pretrain", [*SETTINGS, *MODE, *overrides], None), resolve=True)


def encoder_of(config: Any, data: Loaded, seed: int) -> Encoder:
    """Return the encoder with random weights."""
    torch.manual_seed(seed)
    size, statistics = config["dataset"]["image_size"], normalization(config["dataset"], data.train)
    return build_encoder(config["backbone"], size, *statistics)


def trained(job: Job, data: Loaded, device: Device) -> Task:
    """Return the task that `sslrun pretrain` trains with these settings."""
    given = (f"pretext={job.task}", f"train.steps={job.steps}", *filter(None, [job.setting]))
    config = composed((*job.overrides, *given))
    task = build_task(config["pretext"], encoder_of(config, data, job.seed), config["dataset"]["image_size"])
    task.set_sizes(len(data.train), BATCH)
    device.put(task)
    task.prepare(data.train.images, device)
    training: Training = build(config["train"])
    optimizer = build_optimizer(config["optimizer"], task, training.learning_rate)
    for step in Batches(data.images, None, BATCH, job.steps, job.seed, device).after(0):
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate_at(step.step, job.steps, group["rate"])
        train_step(task, step, job.steps, optimizer, device, training.gradient_clip)
    return task.eval()


def downstream(job: Job, data: Loaded, device: Device) -> Encoder:
    """Train, and return the encoder that goes downstream."""
    if job.task == UNTRAINED:
        return device.put(encoder_of(composed(job.overrides), data, job.seed)).eval()  # type: ignore[return-value]
    task = trained(job, data, device)
    return task.get_submodule(task.downstream)  # type: ignore[return-value]


def measured(job: Job) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Train; return the row of the training and those of its probes; an empty row if the task refuses the data."""
    data, device = loaded(job.overrides)
    try:
        encoder = downstream(job, data, device)
    except UserError as error:
        if "gray" not in str(error):  # colorization refuses gray images
            raise
        print(f"{job.data} {job.task}: {error}", flush=True)
        return job.key, []
    metrics = encoder_metrics(encoder, data.images, data.knn, device)
    row = job.key | {name: round(metrics[f"val/{name}"], 4) for name in METRICS}
    if not job.probed:
        return row, []
    test = tested_on(job.overrides)
    tested = pooled_features(encoder, test.images, device, ["average", "grid"])
    return row, [
        job.key | {"labels_per_class": n, "subset": s} | probe(encoder, data.train, test, tested, n, s, device)
        for n in PER_CLASS[job.data]
        for s in range(SUBSETS)
    ]


def label_subset(train: Dataset, per_class: int, seed: int) -> Dataset:
    """Return the images of a label budget."""
    assert train.labels is not None
    return train.take(LabelBudget(per_class=per_class, seed=seed).rows(train.labels.numpy()))


def probe(
    encoder: Encoder, train: Dataset, test: Dataset, tested: Any, per_class: int, seed: int, device: Device
) -> dict[str, float]:
    """Fit a logistic regression on the features of a label subset, as `sslrun finetune mode=probe`."""
    assert test.labels is not None
    subset = label_subset(train, per_class, seed)
    labels = subset.labels.numpy()  # type: ignore[union-attr]
    frozen = Frozen(encoder, "auto", subset, folds(labels, FOLDS, seed), device, "none")
    weight, bias = frozen.head(np.arange(len(subset)))
    features: Tensor = tested[frozen.pooling]
    predicted, truth = (features @ weight.T + bias).argmax(1).numpy(), test.labels.numpy()
    val = corrected_accuracy(Predictions([""] * len(frozen.variants), frozen.probabilities, labels))
    macro = f1_score(truth, predicted, average="macro", zero_division=0)
    scores = {"val_accuracy": val, "test_accuracy": (predicted == truth).mean(), "test_f1_macro": macro}
    return {name: round(float(score), 4) for name, score in scores.items()}


def measure(jobs: list[Job], rows: Path, probes: Path, workers: int) -> None:
    """Measure what has no row yet, several trainings at a time."""
    done = {tuple(r[k] for k in KEY) for r in csv.DictReader(rows.open())} if rows.exists() else set()
    left = [job for job in jobs if tuple(str(v) for v in job.key.values()) not in done]
    print(f"{len(left)} of {len(jobs)} trainings", flush=True)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(measured, job) for job in left]):
            if future.exception():
                traceback.print_exception(future.exception())
                continue
            row, probed = future.result()
            for one in probed:
                append(probes, one, PROBE)
            append(rows, row, ROW)
            print(*row.values(), flush=True)


def speed(folder: Path) -> None:
    """Measure each task's images/s on one thread, as `sslrun pretrain` reports it."""
    for task in (*OLD, *TRIED):
        with tempfile.TemporaryDirectory() as work:
            command = [sys.executable, "-m", "sslrun", "pretrain", str(folder.resolve()), f"pretext={task}"]
            command += [*SETTINGS, *MODE, "device=cpu", f"train.steps={WARM}", "train.evaluations=1"]
            subprocess.run(command, cwd=work, check=True, stderr=subprocess.PIPE)
            (summary,) = Path(work).glob("outputs/pretrain/2*/summary.json")
            row = {"task": task, "images_per_second": round(json.loads(summary.read_text())["images_per_second"])}
        append(HERE / "tasks_speed.csv", row, list(row))
        print(*row.values(), flush=True)


def planned(args: argparse.Namespace) -> list[Job]:
    """Return the trainings of `tune` or `table`, seeds first, so that what is cut short has all tasks."""
    rates = {r["task"]: float(r["images_per_second"]) for r in csv.DictReader((HERE / "tasks_speed.csv").open())}
    tune = args.what == "tune"
    jobs = []
    for seed in map(int, args.seeds.split(",")):
        for name, *overrides in map(shlex.split, args.data):
            own = (*overrides, f"device={args.device}")
            for task in args.only.split(",") if args.only else [*TRIED] if tune else [*OLD, *TRIED, UNTRAINED]:
                steps = args.factor * round(MINUTES[name] * 60 * rates[task] / BATCH) if task in rates else 0
                for setting in TRIED[task] if tune else ("",):
                    jobs.append(Job(name, own, task, setting, steps, args.device, seed, not tune))
    return jobs


def main() -> None:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "tune", "table"])
    parser.add_argument("data", nargs="+")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--only", help="tasks; all by default")
    parser.add_argument("--factor", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rows", type=Path, default=HERE, help="folder of the rows")
    args = parser.parse_args()
    if args.what == "speed":
        speed(Path(args.data[0]))
        return
    rows = args.rows / ("tasks_tuning.csv" if args.what == "tune" else "tasks.csv")
    measure(planned(args), rows, args.rows / "tasks_probes.csv", args.workers)


if __name__ == "__main__":
    main()
