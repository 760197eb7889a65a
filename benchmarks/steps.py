"""How many steps should a finetuning take, which of its weights should be kept, and at which learning rates?

    python benchmarks/steps.py --fashion-mnist FOLDER --emoji FOLDER [--minutes 60] [--rows benchmarks/steps.csv]

`smallcnn` at 32 px, from random weights (scratch), and from a short rotation pretraining with the head initialized by
logistic regression; for each number of labels, number of steps and seed one training on all of them. The training
images are split once into a pool, which is pretrained on and from which labels are drawn, and held-out images, which
only score. The test split is not read. FOLDER of Fashion-MNIST is as in dataset.root=, that of emoji contains train/.

Works in the current folder, on one thread. Each row is one training; rows that are in the file are not repeated, and
none is started after so many minutes. `initial` is
the accuracy before the first step, from rotation that of the probe; `seconds` is the processor time of the steps.
"""

import argparse
import copy
import csv
import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from rows import append
from sklearn.model_selection import StratifiedGroupKFold
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.datasets import FashionMNIST

from sslrun.config.build import build
from sslrun.config.compose import compose_config
from sslrun.data.dataset import Dataset, load_test, load_train
from sslrun.data.labels import LabelBudget, folds
from sslrun.device import Device
from sslrun.models.classifier import Classifier
from sslrun.models.features import probabilities
from sslrun.models.initialization import resolve
from sslrun.tasks.finetuning.supervised import Finetuning
from sslrun.training.batches import Batches
from sslrun.training.frozen import Frozen
from sslrun.training.loop import train_step
from sslrun.training.optimizers import build_optimizer
from sslrun.training.settings import Training

COMMON = ("backbone=smallcnn", "dataset=folder", "dataset.image_size=32", "device=cpu",
          "device.precision=bf16", "device.memory_format=channels_last", "device.threads=1")  # fmt: skip
POOL, HELD_OUT = 20_000, 1_000  # images of Fashion-MNIST; of emoji two thirds and one third
PRETRAINING = {"fashion_mnist": 100, "emoji": 150}  # steps
SEEDS = 3
TAIL = 0.75  # the mean of the weights begins after this fraction of the steps
STATES = ("last", "ema", "tail", "best")


@dataclass(frozen=True)
class Cell:
    """A training, but for its seed."""

    data: str
    init: str
    labels: int  # per class
    steps: int
    backbone_rate: float = 1.0
    learning_rate: float = 0.002
    frozen_batch_norm: bool = False


KEYS = (*Cell.__dataclass_fields__, "seed")
COLUMNS = (*KEYS, "initial", *STATES, "best_step", "seconds")


def fashion_mnist(source: Path, root: Path) -> None:
    """Write the pool to root/train and the held-out images to root/test."""
    data = FashionMNIST(str(source), train=True)
    images, labels = data.data.numpy(), data.targets.numpy()
    order = np.random.default_rng(0).permutation(len(labels))
    for c in range(10):
        rows = order[labels[order] == c]
        for split, chosen in (("train", rows[: POOL // 10]), ("test", rows[-HELD_OUT // 10 :])):
            (folder := root / split / f"class{c}").mkdir(parents=True)
            for i in chosen:
                Image.fromarray(images[i]).save(folder / f"{i:05d}.png")


def emoji(source: Path, root: Path) -> None:
    """Link the pool to root/train and the held-out images to root/test; drawings of one emoji are not divided."""
    paths = np.array(sorted((source / "train").glob("*/*.png")))
    labels, groups = [p.parent.name for p in paths], [p.stem.rpartition("-")[0] for p in paths]
    folds = StratifiedGroupKFold(3, shuffle=True, random_state=0)
    train, test = next(folds.split(paths, labels, groups))
    for split, rows in (("train", train), ("test", test)):
        for path in paths[rows]:
            (folder := root / split / path.parent.name).mkdir(parents=True, exist_ok=True)
            (folder / path.name).symlink_to(path.resolve())


def pretrained(root: Path) -> Path:
    """Pretrain on the pool, unless it was done before, and return the directory of the run."""
    note = root / "rotation.txt"
    if not note.exists():
        own = ("pretext=rotation", f"dataset.root={root}", f"train.steps={PRETRAINING[root.name]}")
        command = [sys.executable, "-m", "sslrun", "pretrain", *COMMON, *own, "train.evaluations=1"]
        subprocess.run(command, check=True)
        note.write_text(str(max(Path("outputs/pretrain").glob("2*")).resolve()))
    return Path(note.read_text())


@cache
def setup(name: str, init: str) -> tuple[dict[str, Any], Device, Dataset, Dataset]:
    """Return the config, the device, the pool, and the held-out images."""
    root = Path(name).resolve()
    source = "scratch" if init == "scratch" else str(pretrained(root))
    overrides = [*COMMON, f"dataset.root={root}", f"init={source}"]
    config: Any = OmegaConf.to_container(compose_config("finetune", overrides, None), resolve=True)
    device: Device = build(config["device"])
    device.claim()
    return config, device, load_train(config["dataset"])[0], load_test(config["dataset"])


@cache
def subset(name: str, init: str, per_class: int, seed: int) -> tuple[Dataset, Dataset]:
    """Return the labeled images, and a fifth as many for validation, which count as extra."""
    _, _, pool, _ = setup(name, init)
    assert pool.labels is not None
    sizes = (per_class, per_class + per_class // 5)
    rows, more = (LabelBudget(per_class=n, seed=seed).rows(pool.labels.numpy()) for n in sizes)
    return pool.take(rows), pool.take(np.setdiff1d(more, rows))


@cache
def initial(name: str, init: str, per_class: int, seed: int) -> tuple[Classifier, float]:
    """Return the classifier before its first step, and its accuracy on the held-out images."""
    config, device, pool, held_out = setup(name, init)
    data, _ = subset(name, init, per_class, seed)
    torch.manual_seed(seed)
    overrides = {o.partition("=")[0]: o.partition("=")[2] for o in COMMON}
    encoder = resolve(config["init"], config["backbone"], config["dataset"], overrides).encoder(pool)
    device.put(encoder)
    assert data.labels is not None
    frozen = Frozen(encoder, "auto", data, folds(data.labels.numpy(), 5, seed), device, "none")
    classifier = Classifier(encoder, len(data.class_names))
    if init != "scratch":
        classifier.set_head(*frozen.head(np.arange(len(data))))
    return classifier, accuracy(classifier, held_out, device)


def accuracy(classifier: Classifier, data: Dataset, device: Device) -> float:
    """Return the accuracy on images."""
    assert data.labels is not None
    return float((probabilities(classifier, data.images, device).argmax(1) == data.labels).float().mean())


def trained(cell: Cell, seed: int) -> dict[str, float]:
    """Train and return the accuracy of each kind of weights on the held-out images.

    - last: after the last step
    - ema: exponential moving average; its time constant is a tenth of the steps
    - tail: mean of the weights and batch norm statistics after each step of the last quarter
    - best: the best of 11 states on the validation images, the one before the first step among them
    """
    config, device, _, held_out = setup(cell.data, cell.init)
    data, val = subset(cell.data, cell.init, cell.labels, seed)
    assert data.labels is not None
    start, before = initial(cell.data, cell.init, cell.labels, seed)
    classifier = copy.deepcopy(start)
    task = Finetuning(
        classifier, build(config["augment"]), config["label_smoothing"], 0, cell.frozen_batch_norm, cell.backbone_rate
    )
    device.put(task)
    training: Training = replace(build(config["train"]), steps=cell.steps, learning_rate=cell.learning_rate)
    optimizer = build_optimizer(config["optimizer"], task, training.learning_rate)

    batches = Batches(data.images, data.labels, training.batch_size, cell.steps, seed, device)
    ema = AveragedModel(classifier, multi_avg_fn=get_ema_multi_avg_fn(1 - 10 / cell.steps), use_buffers=True)
    tail = AveragedModel(classifier, use_buffers=True)
    best, best_step, highest, seconds = copy.deepcopy(classifier), 0, accuracy(classifier, val, device), 0.0
    began = time.process_time()
    for step in batches.after(0):
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate_at(step.step, cell.steps, group["rate"])
        train_step(task, step, cell.steps, optimizer, device, training.gradient_clip)
        done = step.step + 1
        ema.update_parameters(classifier)
        if done > TAIL * cell.steps:
            tail.update_parameters(classifier)
        if done in training.evaluated_after(cell.steps):
            seconds += time.process_time() - began
            if (score := accuracy(classifier, val, device)) > highest:
                best, best_step, highest = copy.deepcopy(classifier), done, score
            began = time.process_time()
    states: dict[str, Any] = {"last": classifier, "ema": ema.module, "tail": tail.module, "best": best}
    result = {k: accuracy(v, held_out, device) for k, v in states.items()}
    return {"initial": before, **result, "best_step": best_step, "seconds": seconds}


def cells() -> Iterator[Cell]:
    """Yield all trainings, the most informative first."""
    few, many = ({"fashion_mnist": f, "emoji": e} for f, e in ((5, 6), (50, 56)))

    def of(labels: dict[str, int], inits: tuple[str, ...], steps: int, **settings: Any) -> Iterator[Cell]:
        for data, per_class in labels.items():
            for init in inits:
                yield Cell(data, init, per_class, steps, **settings)

    both, finetuned, scratch = ("rotation", "scratch"), ("rotation",), ("scratch",)
    yield from of(few, both, 100)
    yield from of(few, finetuned, 100, learning_rate=0.0002)
    yield from of(many, both, 100)
    yield from of(many, scratch, 50)
    yield from of(few, scratch, 200)
    yield from of(few, both, 50)
    yield from of(many, finetuned, 50)
    yield from of(many, scratch, 200)
    yield from of(many, finetuned, 100, learning_rate=0.0002)
    yield from of(few, finetuned, 100, backbone_rate=0.1)


def table(rows: list[dict[str, str]]) -> None:
    """Print mean and SD of the accuracy over the seeds, in percent."""
    print("| data | initialization | labels | steps | backbone rate | learning rate | batch norm | initial |", end="")
    print(" | ".join(["", *STATES]), "| seconds |")
    print("|---" * (9 + len(STATES)) + "|")
    of: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        of.setdefault(tuple(row[k] for k in KEYS[:-1]), []).append(row)
    for key, seeds in sorted(of.items(), key=lambda item: (item[0][0], item[0][1], *map(float, item[0][2:6]))):
        columns = [np.array([100 * float(r[c]) for r in seeds]) for c in ("initial", *STATES)]
        values = [f"{v.mean():.1f} ± {v.std(ddof=1):.1f}" if len(v) > 1 else f"{v[0]:.1f}" for v in columns]
        print("|", " | ".join([*key, *values, f"{np.mean([float(r['seconds']) for r in seeds]):.1f}"]), "|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fashion-mnist", type=Path, required=True)
    parser.add_argument("--emoji", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rows", type=Path, default=Path("steps.csv"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = list(csv.DictReader(args.rows.open())) if args.rows.exists() else []
    done = {tuple(r[k] for k in KEYS) for r in rows}
    for name, write, source in (("fashion_mnist", fashion_mnist, args.fashion_mnist), ("emoji", emoji, args.emoji)):
        if not Path(name).exists():
            write(source, Path(name).resolve())
    began = time.monotonic()
    for cell, seed in itertools.product(cells(), range(SEEDS)):
        row = {**{k: str(v) for k, v in vars(cell).items()}, "seed": str(seed)}
        if tuple(row.values()) in done or time.monotonic() - began > 60 * args.minutes:
            continue
        result = trained(cell, seed)
        row |= {k: f"{v:.4f}" if k in ("initial", *STATES) else f"{v:.4g}" for k, v in result.items()}
        rows.append(row)
        append(args.rows, row, COLUMNS)
        print(row, flush=True)
    table(rows)


if __name__ == "__main__":
    main()
