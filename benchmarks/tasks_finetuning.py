"""Finetuning after the pretext tasks that did best, and from scratch: the second table of docs/tasks.md.

    python benchmarks/tasks_finetuning.py DATA ... [--seeds 10,11] [--only TASK,...] [--factor 3] [--workers 2]
        [--rows FOLDER]

DATA and the trainings are those of benchmarks/tasks.py, with the same steps, but in fp32, which every CPU computes
fast. Each pretrained network
is finetuned on three label subsets, with the settings and the steps of `sslrun finetune mode=finetune`, but without its
cross-validation: nothing is chosen. `none` is trained from scratch on the same subsets. `--factor 3` pretrains three
times as long, and trains three times as long from scratch: `steps` of `none` are those on top of the usual ones.
Rows are appended to tasks_finetuning.csv as they come, and trainings whose rows are there are not repeated.
"""

import argparse
import csv
import multiprocessing
import shlex
import tempfile
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from rows import append
from sklearn.metrics import f1_score
from tasks import (
    BATCH,
    FOLDS,
    HERE,
    KEY,
    MINUTES,
    PER_CLASS,
    SUBSETS,
    UNTRAINED,
    Job,
    composed,
    downstream,
    label_subset,
    loaded,
    tested_on,
)

from sslrun.config.compose import compose_config
from sslrun.data.balance import balanced_method
from sslrun.data.dataset import Dataset
from sslrun.data.labels import Fold, folds
from sslrun.device import Device
from sslrun.evaluation.validation import encoder_metrics
from sslrun.models.encoder import Encoder
from sslrun.models.features import pooled_features
from sslrun.training.folds import FoldTraining, fold_probabilities
from sslrun.training.frozen import Frozen
from sslrun.training.settings import default_steps

BEST = ("simclr", "amdim", "vicreg", "moco", UNTRAINED)
SCORES = ("knn_accuracy", "probe_accuracy", "test_accuracy", "test_f1_macro")
ROW = (*KEY, "precision", "labels_per_class", "subset", *SCORES)


def measured(job: Job) -> list[dict[str, Any]]:
    """Train, then finetune on every label subset; return the rows."""
    data, device = loaded(job.overrides)
    encoder = downstream(job, data, device)
    knn = round(encoder_metrics(encoder, data.images, data.knn, device)["val/knn_accuracy"], 4)
    per_class = PER_CLASS[job.data][-1]
    common = job.key | {"precision": device.precision, "labels_per_class": per_class}
    state = {k: v.clone() for k, v in encoder.state_dict().items()}
    rows = []
    for subset in range(SUBSETS):
        encoder.load_state_dict(state)
        scores = finetuned(job, encoder, data.train, tested_on(job.overrides), per_class, subset, device)
        rows.append(common | {"subset": subset, "knn_accuracy": knn} | scores)
    return rows


def finetuned(
    job: Job, encoder: Encoder, train: Dataset, test: Dataset, per_class: int, seed: int, device: Device
) -> dict[str, float]:
    """Finetune on a label subset; return the scores on the test split, and that of the regression it starts from."""
    assert test.labels is not None
    subset = label_subset(train, per_class, seed)
    assert subset.labels is not None
    labels, truth, n = subset.labels.numpy(), test.labels.numpy(), len(subset)
    of_pretraining = composed(job.overrides)
    config: Any = OmegaConf.to_container(compose_config("finetune", [f"seed={seed}"], None), resolve=False)
    config |= {name: of_pretraining[name] for name in ("backbone", "dataset", "device")}
    config = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
    config["train"]["steps"] = default_steps(n) + (job.steps if job.task == UNTRAINED else 0)
    config["balance"] = balanced_method("auto", subset.labels)
    frozen = Frozen(encoder, "auto", subset, folds(labels, FOLDS, seed, subset.groups), device, config["balance"])
    rows = np.arange(n)
    weight, bias = frozen.head(rows)
    features = pooled_features(encoder, test.images, device, [frozen.pooling])[frozen.pooling]
    probed = (features @ weight.T + bias).argmax(1).numpy()
    head = None if job.task == UNTRAINED else frozen.initial_head(rows, config["label_smoothing"])
    config["pooling"] = frozen.pooling
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images.npy"
        every = torch.cat([subset.images[:], test.images[:]])
        np.save(images, every.permute(0, 2, 3, 1).numpy())
        arrays = None if head is None else (head[0].numpy(), head[1].numpy())
        fold = Fold(rows, np.arange(n, len(every)))
        both = np.concatenate([labels, truth])
        p = fold_probabilities(FoldTraining(config, frozen.state, arrays, images, both, frozen.classes, fold))
    predicted = p.argmax(1)
    scores = {
        "probe_accuracy": (probed == truth).mean(),
        "test_accuracy": (predicted == truth).mean(),
        "test_f1_macro": f1_score(truth, predicted, average="macro", zero_division=0),
    }
    return {name: round(float(score), 4) for name, score in scores.items()}


def main() -> None:
    """Measure what has no rows yet, seeds first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--seeds", default="10,11")
    parser.add_argument("--only", default=",".join(BEST), help="tasks")
    parser.add_argument("--factor", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rows", type=Path, default=HERE, help="folder of the rows")
    args = parser.parse_args()
    path = args.rows / "tasks_finetuning.csv"
    rates = {r["task"]: float(r["images_per_second"]) for r in csv.DictReader((HERE / "tasks_speed.csv").open())}
    rows = [tuple(r[k] for k in KEY) for r in csv.DictReader(path.open())] if path.exists() else []
    jobs = []
    for seed in map(int, args.seeds.split(",")):
        for task in args.only.split(","):
            for name, *overrides in map(shlex.split, args.data):
                usual = round(MINUTES[name] * 60 * rates[task] / BATCH) if task in rates else 0
                steps = args.factor * usual or (args.factor - 1) * default_steps(0)
                own = (*overrides, "device=cpu", "device.precision=fp32")
                jobs.append(Job(name, own, task, "", steps, "cpu", seed, True))
    left = [job for job in jobs if tuple(str(v) for v in job.key.values()) not in rows]
    print(f"{len(left)} of {len(jobs)} trainings", flush=True)
    with ProcessPoolExecutor(args.workers, multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(measured, job) for job in left]):
            if future.exception():
                traceback.print_exception(future.exception())
                continue
            for row in future.result():
                print(*row.values(), flush=True)
                append(path, row, ROW)


if __name__ == "__main__":
    main()
