"""Which loss should a distillation have?

    python benchmarks/distillation.py NAME "OVERRIDES OF THE DATA SET" [--rows FILE] [--device cuda]

Trains `smallcnn` to learn the features of the first published weights on this machine (see `sslrun weights`), with
each loss and student seed, as `sslrun pretrain pretext=distill` does. The training images are split once into a pool,
from which is learned and labels are drawn, and a quarter that is held out and only scores a logistic regression on the
frozen features. The test split is not read. A row of the file is the mean accuracy of three label subsets; `random` is
a student that was not trained.

- components: `Distill`, squared error of whitened principal components, weighted by the root of the singular values
- whitened: the same without weights
- cosine, centered cosine: 1 - cosine with the features, and with the features minus their mean
- both: the sum of components and cosine, each with a head of its own; not measured, run with --losses both
- similarity: cross-entropy between the similarities of an image to the others of the batch, temperature 0.1 (SEED)
"""

import argparse
import shlex
import time
from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from rows import append
from torch import Tensor, nn

from sslrun.augment import Rng
from sslrun.config.build import build
from sslrun.config.compose import compose_config
from sslrun.data.dataset import Dataset, load_train
from sslrun.data.labels import LabelBudget, folds
from sslrun.data.statistics import normalization
from sslrun.device import Device, in_float32
from sslrun.models.encoder import build_encoder
from sslrun.models.features import features
from sslrun.models.teacher_features import half_rows
from sslrun.tasks.pretext.distill import Distill
from sslrun.training.batches import Batches
from sslrun.training.frozen import Frozen
from sslrun.training.loop import train_step
from sslrun.training.optimizers import build_optimizer

SIZE, SUBSETS, TEMPERATURE = 32, 3, 0.1
PER_CLASS = (5, 20)
COLUMNS = ("data", "loss", "seed", "labels_per_class", "accuracy", "seconds")


class Other(Distill):
    """Another loss, of the student's output and the teacher's features."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.head = nn.Linear(self.encoder.feature_dim, len(self.mean))

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        predicted = in_float32(self.head, self.encoder(self.augment(batch["images"], rng)))
        assert self.features is not None
        with torch.autocast(predicted.device.type, enabled=False):
            return {"loss": self.loss(predicted, half_rows(self.features, batch["rows"]).to(predicted.device))}

    @abstractmethod
    def loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a batch: both are `N x D`."""


class Cosine(Other):
    def loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(predicted, target).mean()


class Both(Distill):
    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.whole = nn.Linear(self.encoder.feature_dim, len(self.mean))

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        embedding = self.encoder(self.augment(batch["images"], rng))
        predicted, whole = in_float32(self.head, embedding), in_float32(self.whole, embedding)
        assert self.features is not None
        with torch.autocast(predicted.device.type, enabled=False):
            features = half_rows(self.features, batch["rows"]).to(predicted.device)
            components = ((predicted - self.targets(batch["rows"])).square() * self.weight).mean()
            return {"loss": components + 1 - F.cosine_similarity(whole, features).mean()}


class CenteredCosine(Other):
    def loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(predicted, target - self.mean).mean()


class Similarity(Other):
    def loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        a, b = F.normalize(predicted), F.normalize(target - self.mean)
        others = ~torch.eye(len(a), dtype=torch.bool, device=a.device)
        ours, theirs = ((x @ x.T / TEMPERATURE)[others].view(len(a), -1) for x in (a, b))
        return F.cross_entropy(ours, theirs.softmax(1))


class Whitened(Distill):
    """Components without weights."""

    def prepare(self, images: Any, device: Device) -> float:
        saved = super().prepare(images, device)
        self.weight.fill_(1.0)
        return saved


LOSSES: dict[str, type[Distill]] = {
    "components": Distill, "whitened": Whitened, "cosine": Cosine, "both": Both,
    "centered cosine": CenteredCosine, "similarity": Similarity,
}  # fmt: skip


def trained(loss: str, config: Any, pool: Dataset, device: Device, seed: int, steps: int) -> Distill:
    """Return a trained task."""
    torch.manual_seed(seed)
    encoder = build_encoder(config["backbone"], SIZE, *normalization(config["dataset"], pool))
    node = {k: v for k, v in config["pretext"].items() if k not in ("_target_", "augment")}
    task = LOSSES.get(loss, Distill)(encoder, SIZE, **node, augment=build(config["pretext"]["augment"]))
    device.put(task)
    if loss == "random":
        return task
    task.prepare(pool.images, device)
    training = replace(build(config["train"]), epochs=None, steps=steps)
    optimizer = build_optimizer(config["optimizer"], task, training.learning_rate)
    batches = Batches(pool.images.on(device.torch), None, training.batch_size, steps, seed, device)
    for step in batches.after(0):
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate_at(step.step, steps, group["rate"])
        train_step(task, step, steps, optimizer, device, training.gradient_clip)
    return task


def accuracy(task: Distill, pool: Dataset, held_out: Dataset, per_class: int, seed: int, device: Device) -> float:
    """Return the accuracy of a logistic regression on the held-out images."""
    assert pool.labels is not None
    assert held_out.labels is not None
    data = pool.take(LabelBudget(per_class=per_class, seed=seed).rows(pool.labels.numpy()))
    assert data.labels is not None
    frozen = Frozen(task.encoder, "average", data, folds(data.labels.numpy(), 5, seed), device, "none")
    weight, bias = frozen.head(np.arange(len(data)))
    embedded = features(task.encoder, held_out.images, device)
    return float(((embedded @ weight.T + bias).argmax(1) == held_out.labels).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("overrides")
    parser.add_argument("--rows", type=Path, default=Path("distillation.csv"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--losses", default=",".join((*(n for n in LOSSES if n != "both"), "random")))
    args = parser.parse_args()
    own = ["pretext=distill", *shlex.split(args.overrides), f"dataset.image_size={SIZE}", f"device={args.device}"]
    config: Any = OmegaConf.to_container(compose_config("pretrain", own, None), resolve=True)
    device: Device = build(config["device"])
    device.claim()
    data = load_train(config["dataset"])[0]
    assert data.labels is not None
    fold = folds(data.labels.numpy(), 4, 0, data.groups)[0]
    pool, held_out = data.take(fold.train), data.take(fold.val)
    print(f"{args.name}: pool {len(pool)}, held out {len(held_out)}", flush=True)
    for seed in range(args.seeds):
        for loss in args.losses.split(","):
            began = time.monotonic()
            task = trained(loss, config, pool, device, seed, args.steps)
            seconds = time.monotonic() - began
            for per_class in PER_CLASS:
                scores = [accuracy(task, pool, held_out, per_class, s, device) for s in range(SUBSETS)]
                row = (args.name, loss, seed, per_class, f"{np.mean(scores):.4f}", f"{seconds:.1f}")
                print(*row, flush=True)
                append(args.rows, dict(zip(COLUMNS, row, strict=True)), COLUMNS)


if __name__ == "__main__":
    main()
