"""How should a pretrained network be finetuned, so that it is not below its own linear probe?

    python benchmarks/finetuning.py --fashion-mnist FOLDER --emoji FOLDER [--minutes 60] [--rows FILE]

`smallcnn` at 32 px, pretrained with rotation (100 steps) and with distillation (300 steps, from the first published
weights on the machine), on Fashion-MNIST, emoji and digits. The head starts at the logistic regression on the frozen
features, whose C is chosen inside the labels; then each recipe trains on all of them. The training images are split
once into a pool, which is pretrained on and from which labels are drawn, and held-out images, which only score. The
test split is not read. FOLDER of Fashion-MNIST is as in dataset.root=, that of emoji contains train/.

Works in the current folder, on one thread. Each row is one training; rows that are in the file are not repeated, and
none is started after so many minutes. `probe` is the accuracy before the first step, `early` after a fifth of the
steps, `last` after the last; `seconds` is the processor time of the steps.
"""

import argparse
import copy
import csv
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import steps
import torch
from omegaconf import OmegaConf
from PIL import Image
from rows import append
from steps import accuracy

from sslrun.config.build import build
from sslrun.config.compose import compose_config
from sslrun.data.dataset import Dataset, load_test, load_train
from sslrun.data.labels import LabelBudget, folds
from sslrun.device import Device
from sslrun.evaluation.intervals import mean_interval
from sslrun.models.classifier import Classifier
from sslrun.models.initialization import resolve
from sslrun.tasks.finetuning.supervised import Finetuning
from sslrun.training.batches import Batches
from sslrun.training.frozen import Frozen
from sslrun.training.loop import train_step
from sslrun.training.optimizers import build_optimizer
from sslrun.training.settings import Training, default_steps

COMMON = (*steps.COMMON, "train.evaluations=1")
POOL, HELD_OUT = 4_000, 2_000  # images of Fashion-MNIST; of emoji and digits two thirds and one third
PRETRAINING = {"rotation": 100, "distill": 300}  # steps
DATA = {  # overrides
    "fashion_mnist": (),
    "emoji": (),
    "digits": ("dataset.horizontal_flip=false",),
}
SEEDS = 3


@dataclass(frozen=True)
class Recipe:
    """Settings of a finetuning; these are those from scratch, which were the default of pretrained networks, too.

    Attributes:
        backbone_rate, head_rate, layer_decay: multiples of the learning rate, 0.002.
        scaled: multiply the logits of the regression by the number with the lowest loss.
    """

    backbone_rate: float = 1.0
    head_rate: float = 1.0
    layer_decay: float = 1.0
    freeze_batch_norm: bool = False
    steps: int = 100
    label_smoothing: float = 0.1
    scaled: bool = False


KEYS = ("data", "init", "per_class", *Recipe.__dataclass_fields__, "seed")
COLUMNS = (*KEYS, "probe", "early", "last", "seconds")


def digits(root: Path) -> None:
    """Write the pool to root/train and the held-out images to root/test."""
    overrides = ["dataset=digits", "dataset.image_size=8", "init=scratch", "backbone=smallcnn"]
    config: Any = OmegaConf.to_container(compose_config("finetune", overrides, None), resolve=True)
    data = load_train(config["dataset"])[0]
    assert data.labels is not None
    images, labels = data.images[:].numpy(), data.labels.numpy()
    order = np.random.default_rng(0).permutation(len(labels))
    for c in range(10):
        rows = order[labels[order] == c]
        for split, chosen in (("test", rows[: len(rows) // 3]), ("train", rows[len(rows) // 3 :])):
            (folder := root / split / str(c)).mkdir(parents=True)
            for i in chosen:
                Image.fromarray(images[i, 0]).save(folder / f"{i:05d}.png")


def pretrained(root: Path, init: str) -> Path:
    """Pretrain on the pool, unless it was done before, and return the directory of the run."""
    note = root / f"{init}.txt"
    if not note.exists():
        own = (f"pretext={init}", f"dataset.root={root}", f"train.steps={PRETRAINING[init]}", "train.epochs=null")
        subprocess.run([sys.executable, "-m", "sslrun", "pretrain", *COMMON, *DATA[root.name], *own], check=True)
        note.write_text(str(max(Path("outputs/pretrain").glob("2*")).resolve()))
    return Path(note.read_text().strip())


@cache
def setup(name: str, init: str) -> tuple[dict[str, Any], Device, Dataset, Dataset]:
    """Return the config, the device, the pool, and the held-out images."""
    root = Path(name).resolve()
    overrides = [*COMMON, *DATA[name], f"dataset.root={root}", f"init={pretrained(root, init)}"]
    config: Any = OmegaConf.to_container(compose_config("finetune", overrides, None), resolve=True)
    device: Device = build(config["device"])
    device.claim()
    return config, device, load_train(config["dataset"])[0], load_test(config["dataset"])


@cache
def initial(
    name: str, init: str, per_class: int, seed: int, smoothing: float | None
) -> tuple[Dataset, Classifier, float]:
    """Return the labeled images, the classifier before its first step, and its accuracy on the held-out images."""
    config, device, pool, held_out = setup(name, init)
    assert pool.labels is not None
    data = pool.take(LabelBudget(per_class=per_class, seed=seed).rows(pool.labels.numpy()))
    torch.manual_seed(seed)
    overrides = {o.partition("=")[0]: o.partition("=")[2] for o in (*COMMON, *DATA[name])}
    encoder = resolve(config["init"], config["backbone"], config["dataset"], overrides).encoder(pool)
    device.put(encoder)
    assert data.labels is not None
    frozen = Frozen(encoder, "auto", data, folds(data.labels.numpy(), 5, seed), device, "none")
    classifier = Classifier(encoder, len(data.class_names))
    rows = np.arange(len(data))
    classifier.set_head(*(frozen.head(rows) if smoothing is None else frozen.initial_head(rows, smoothing)))
    return data, classifier, accuracy(classifier, held_out, device)


def trained(name: str, init: str, per_class: int, recipe: Recipe, seed: int) -> dict[str, float]:
    """Train and return the row's numbers."""
    config, device, _, held_out = setup(name, init)
    data, before, probe = initial(name, init, per_class, seed, recipe.label_smoothing if recipe.scaled else None)
    assert data.labels is not None
    classifier = copy.deepcopy(before)
    task = Finetuning(
        classifier, build(config["augment"]), recipe.label_smoothing, 0, recipe.freeze_batch_norm, recipe.backbone_rate,
        recipe.layer_decay, recipe.head_rate,
    )  # fmt: skip
    device.put(task)
    training: Training = replace(build(config["train"]), steps=recipe.steps)
    optimizer = build_optimizer(config["optimizer"], task, training.learning_rate)
    batches = Batches(data.images, data.labels, training.batch_size, recipe.steps, seed, device)
    early, seconds, began = 0.0, 0.0, time.process_time()
    for step in batches.after(0):
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate_at(step.step, recipe.steps, group["rate"])
        train_step(task, step, recipe.steps, optimizer, device, training.gradient_clip)
        if step.step + 1 == recipe.steps // 5:
            seconds += time.process_time() - began
            early = accuracy(classifier, held_out, device)
            began = time.process_time()
    seconds += time.process_time() - began
    return {"probe": probe, "early": early, "last": accuracy(classifier, held_out, device), "seconds": seconds}


def cells() -> Iterator[tuple[int, Recipe]]:
    """Yield labels per class and recipe: the default with 100 labels, with fewer next to others, then variants."""
    default = Recipe(0.1, 0.1, freeze_batch_norm=True, scaled=True)
    gentle = Recipe(0.01, 0.01, freeze_batch_norm=True, steps=50)
    yield 100, replace(default, steps=default_steps(1_000))
    for per_class in (5, 20, 56):
        yield per_class, default
        yield per_class, Recipe()
        yield per_class, gentle
    quicker, last_stage = replace(default, steps=50), replace(gentle, backbone_rate=0.1)
    for recipe in (
        replace(default, scaled=False),
        replace(default, layer_decay=0.65),
        quicker,
        replace(quicker, backbone_rate=0.3, head_rate=0.3),
        replace(quicker, head_rate=1.0),
        replace(gentle, backbone_rate=0.001, head_rate=0.001),
        replace(gentle, freeze_batch_norm=False),
        replace(gentle, label_smoothing=0.0),
        replace(last_stage, freeze_batch_norm=False),
        replace(last_stage, label_smoothing=0.0),
    ):
        yield 5, recipe
    for recipe in (
        replace(default, backbone_rate=0.03, head_rate=0.03),
        replace(default, backbone_rate=0.3, head_rate=0.3),
        quicker,
        last_stage,
        replace(last_stage, freeze_batch_norm=False),
        replace(last_stage, scaled=True),
    ):
        yield 56, recipe


def table(rows: list[dict[str, str]]) -> None:
    """Print accuracy of the probe, and differences of the finetuned network in points with 95 % intervals (t)."""
    print("|", " | ".join([*KEYS[:-1], "probe", "after a fifth", "finetuned - probe", "seconds"]), "|")
    print("|---" * (len(KEYS) + 3) + "|")
    of: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        of.setdefault(tuple(row[k] for k in KEYS[:-1]), []).append(row)
    for key, seeds in of.items():
        v = {c: np.array([100 * float(r[c]) for r in seeds]) for c in ("probe", "early", "last", "seconds")}
        gain = v["last"] - v["probe"]
        interval = mean_interval(gain.tolist())
        early = (v["early"] - v["probe"]).mean()
        low, high = f"{interval.low:+.1f}", f"{interval.high:+.1f}"
        numbers = f"{v['probe'].mean():.1f} | {early:+.1f} | {gain.mean():+.1f} [{low}, {high}]"
        print("|", " | ".join([*key, numbers, f"{v['seconds'].mean() / 100:.0f}"]), "|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fashion-mnist", type=Path, required=True)
    parser.add_argument("--emoji", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rows", type=Path, default=Path("finetuning.csv"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    steps.POOL, steps.HELD_OUT = POOL, HELD_OUT
    rows = list(csv.DictReader(args.rows.open())) if args.rows.exists() else []
    done = {tuple(r[k] for k in KEYS) for r in rows}
    write: dict[str, Callable[[Path], None]] = {
        "digits": digits,
        "emoji": partial(steps.emoji, args.emoji),
        "fashion_mnist": partial(steps.fashion_mnist, args.fashion_mnist),
    }
    for name in DATA:
        if not Path(name).exists():
            write[name](Path(name).resolve())
    began = time.monotonic()
    for (per_class, recipe), seed, name, init in itertools.product(cells(), range(SEEDS), DATA, PRETRAINING):
        settings = {"data": name, "init": init, "per_class": per_class, **vars(recipe), "seed": seed}
        row = {k: str(v) for k, v in settings.items()}
        if tuple(row.values()) in done or time.monotonic() - began > 60 * args.minutes:
            continue
        result = trained(name, init, per_class, recipe, seed)
        row |= {k: f"{v:.4g}" for k, v in result.items()}
        rows.append(row)
        append(args.rows, row, COLUMNS)
        print(row, flush=True)
    table(rows)


if __name__ == "__main__":
    main()
