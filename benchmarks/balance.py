"""Does balancing the classes help, and which way?

    python benchmarks/balance.py --fashion-mnist FOLDER --elpv FOLDER [--seeds 3] [--rows benchmarks/balance.csv]

Macro F1 out of fold, in 3 folds of the training images, for each value of `finetune balance=`: networks trained from
scratch, and probes and finetuned networks of a short SimCLR. The data sets are

- a long-tailed Fashion-MNIST (FOLDER as in dataset.root=): 500 training images of the largest class down to 5 of the
  smallest in equal ratios (Cui et al. 2019, section 5.1); each seed draws the images and the order of the classes. As
  many as 200 further training images of each class show macro F1 where all classes are equally frequent.
- ELPV (FOLDER of the Python package elpv_dataset): solar cells by their probability of a defect in 4 classes; a fifth
  of them, the test split, is left alone.

Works in the current folder. Each row is three runs; rows that are in the file are not repeated.
"""

import argparse
import csv
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from PIL import Image
from rows import append
from sklearn.metrics import f1_score, recall_score
from torchvision.datasets import FashionMNIST

from sslrun.config.compose import compose_config
from sslrun.data.dataset import Dataset, load_test, load_train
from sslrun.data.labels import folds
from sslrun.device import Device
from sslrun.evaluation.intervals import mean_interval
from sslrun.models.classifier import Classifier, KNNClassifier
from sslrun.models.features import probabilities
from sslrun.models.trained import load_classifier

BALANCE = ("none", "sampling", "weights", "logit")
TRAINED = (("scratch", "finetune"), ("simclr", "probe"), ("simclr", "finetune"))
FOLDS = 3
FURTHER = 200  # images a class
COMMON = ("backbone=smallcnn", "backbone.widths=[16,32,64,128]", "train.batch_size=64", "dataset=folder",
          "device=cpu", "device.precision=fp32", "device.memory_format=channels_last",
          "device.threads=1")  # fmt: skip
PRETRAINING, STEPS = 300, 300
SIZES = {"fashion_mnist": 28, "elpv": 48}  # px
KEYS = ("data", "initialization", "mode", "balance")
COLUMNS = ("data", "initialization", "mode", "seed", "balance", "f1_macro", "accuracy", "recall_macro", "f1_macro_even")


def long_tailed(source: Path, root: Path, seed: int) -> None:
    """Write a long-tailed Fashion-MNIST to root/train, and further training images to root/test."""
    data = FashionMNIST(str(source), train=True)
    images, labels = data.data.numpy(), data.targets.numpy()
    rng = np.random.default_rng(seed)
    for rank, c in enumerate(rng.permutation(10)):
        n = round(500 * 100 ** (-rank / 9))
        rows = rng.permutation(np.flatnonzero(labels == c))
        for split, chosen in (("train", rows[:n]), ("test", rows[n : n + FURTHER])):
            (folder := root / split / f"class{c}").mkdir(parents=True)
            for i in chosen:
                Image.fromarray(images[i]).save(folder / f"{i:05d}.png")


def by_defect(source: Path, root: Path) -> None:
    """Write the solar cells as one folder for each probability of a defect."""
    for line in (source / "data" / "labels.csv").read_text().splitlines():
        name, probability, _ = line.split()
        (folder := root / f"defect{float(probability):.2f}").mkdir(parents=True, exist_ok=True)
        Image.open(source / "data" / name).save(folder / Path(name).name)


def sslrun(command: str, *overrides: str) -> Path:
    """Run a command and return the directory of its run."""
    subprocess.run([sys.executable, "-m", "sslrun", command, *overrides], check=True, capture_output=True)
    return max(Path("outputs", command).glob("2*"))


def measured(name: str, root: Path, initialization: str, mode: str, seed: int, balance: str) -> dict[str, float]:
    """Train without each of the folds, and return the metrics of the pooled predictions."""
    device = Device(
        name="cpu", precision="fp32", memory_format="channels_last", compile=None, deterministic=False, threads=1
    )
    device.claim()
    labels: list[np.ndarray] = []
    predicted: list[np.ndarray] = []
    even: list[float] = []
    own = ["dataset=folder", f"dataset.root={root}", f"dataset.image_size={SIZES[name]}"]
    node: Any = OmegaConf.to_container(compose_config("pretrain", own, None).dataset)
    data, _ = load_train(node)
    assert data.labels is not None
    for fold in folds(data.labels.numpy(), FOLDS, seed):
        file = Path("fold.csv").resolve()  # the labels of the other folds
        with file.open("w", newline="") as out:
            rows = [("file", "label", "split")]
            rows += [(data.names[i], data.class_names[int(data.labels[i])], "train") for i in fold.train]
            csv.writer(out).writerows(rows)
        run = sslrun(
            "finetune", *COMMON, f"dataset.root={root}", f"dataset.image_size={SIZES[name]}", f"init={initialization}",
            f"mode={mode}", f"balance={balance}", f"seed={seed}", f"train.steps={STEPS}", "pooling=average",
            f"dataset.labels={file}",
        )  # fmt: skip
        classifier = load_classifier(run).classifier
        assert classifier is not None

        def of(data: Dataset, classifier: Classifier | KNNClassifier = classifier) -> tuple[np.ndarray, np.ndarray]:
            assert data.labels is not None
            return data.labels.numpy(), probabilities(classifier, data.images, device).numpy().argmax(1)

        for values, more in zip((labels, predicted), of(data.take(fold.val)), strict=True):
            values.append(more)
        if name == "fashion_mnist":
            even.append(f1_score(*of(load_test(node)), average="macro"))
    y, p = np.concatenate(labels), np.concatenate(predicted)
    return {
        "f1_macro": f1_score(y, p, average="macro"),
        "accuracy": float((y == p).mean()),
        "recall_macro": recall_score(y, p, average="macro"),
        "f1_macro_even": float(np.mean(even)) if even else float("nan"),
    }


def table(rows: list[dict[str, str]]) -> None:
    """Print mean and SD over the seeds in percent, and the paired gain in macro F1 over none with its 95 % CI."""
    print("| data | network | balance | macro F1 | gain | accuracy | macro recall | macro F1, even classes |")
    print("|---|---|---|---|---|---|---|---|")

    def of(column: str, *key: str) -> np.ndarray:
        return np.array([100 * float(r[column]) for r in rows if key == tuple(r[k] for k in KEYS)])

    for key in dict.fromkeys(tuple(r[k] for k in KEYS) for r in rows):
        *network, balance = key
        columns = [of(c, *key) for c in COLUMNS[5:]]
        cells = ["" if np.isnan(v).any() else f"{v.mean():.1f} ± {v.std(ddof=1):.1f}" for v in columns]
        gain = mean_interval(list(columns[0] - of("f1_macro", *network, "none")))
        text = "" if balance == "none" else f"{gain.mean:+.1f} [{gain.low:+.1f}, {gain.high:+.1f}]"
        print("|", " | ".join([key[0], f"{key[1]}, {key[2]}", balance, cells[0], text, *cells[1:]]), "|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fashion-mnist", type=Path, required=True)
    parser.add_argument("--elpv", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=Path, default=Path("balance.csv"))
    args = parser.parse_args()
    rows = list(csv.DictReader(args.rows.open())) if args.rows.exists() else []
    done = {tuple(r[c] for c in COLUMNS[:5]) for r in rows}
    for (initialization, mode), seed, name in itertools.product(TRAINED, range(args.seeds), SIZES):
        root = Path(f"{name}{seed}" if name == "fashion_mnist" else name).resolve()
        if not root.exists():
            long_tailed(args.fashion_mnist, root, seed) if name == "fashion_mnist" else by_defect(args.elpv, root)
        for balance in BALANCE:
            if (name, initialization, mode, str(seed), balance) in done:
                continue
            encoder = Path(f"{root.name}-simclr.txt")  # the run that was pretrained on these images
            if initialization != "scratch" and not encoder.exists():
                own = (f"dataset.root={root}", f"dataset.image_size={SIZES[name]}", f"train.steps={PRETRAINING}")
                encoder.write_text(str(sslrun("pretrain", "pretext=simclr", *COMMON, *own).resolve()))
            init = "scratch" if initialization == "scratch" else encoder.read_text()
            result = measured(name, root, init, mode, seed, balance)
            row = {"data": name, "initialization": initialization, "mode": mode, "seed": str(seed), "balance": balance}
            row |= {k: f"{v:.4f}" for k, v in result.items()}
            rows.append(row)
            append(args.rows, row, COLUMNS)
            print(row, flush=True)
    table(rows)


if __name__ == "__main__":
    main()
