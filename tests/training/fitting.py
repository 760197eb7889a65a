"""Shared by tests of training: a network of two weights, and a training on a few small images."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from sslrun.augment import Rng
from sslrun.config.types import Node
from sslrun.device import Device
from sslrun.run.run import Run
from sslrun.tasks.task import Task
from sslrun.training.batches import Batches
from sslrun.training.loop import fit
from sslrun.training.optimizers import build_optimizer
from sslrun.training.settings import Training
from sslrun.training.state import State

PLAIN_SGD: Node = {
    "_target_": "sslrun.training.optimizers.sgd", "weight_decay": 0.0, "momentum": 0.0, "nesterov": False,
}  # fmt: skip
SETTINGS: dict[str, Any] = {
    **{"epochs": None, "steps": 10, "batch_size": 8, "learning_rate": 0.01, "warmup_fraction": 0.0},
    **{"gradient_clip": None, "evaluations": 2, "log_every": 1, "save_minutes": 5, "keep_every": None},
}


class Slope(Task):
    """A loss that is linear in two weights, with a multiple of the learning rate for the encoder."""

    def __init__(self, head: float = 3.0, encoder: float = 4.0, rate: float = 1.0, fails_in: int | None = None) -> None:
        super().__init__()
        self.head, self.encoder = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        self.slopes, self.rate, self.fails_in = (head, encoder), rate, fails_in
        with torch.no_grad():
            self.head.weight.fill_(1)
            self.encoder.weight.fill_(1)

    def learning_rates(self) -> dict[str, float]:
        return {"encoder.": self.rate}

    def before_step(self, step: int, total: int) -> None:
        if step == self.fails_in:
            raise RuntimeError

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        return {"loss": (self.slopes[0] * self.head.weight + self.slopes[1] * self.encoder.weight).sum()}

    def moved(self) -> tuple[float, float]:
        """Return by how much the weights have decreased."""
        return 1 - self.head.weight.item(), 1 - self.encoder.weight.item()


def device(precision: Any = "fp32") -> Device:
    """Return the CPU, which also supports fp16, although slowly."""
    cpu = Device(
        name="cpu", precision="fp32", memory_format="channels_last", compile=None, deterministic=False, threads=None
    )
    cpu.use(precision, "channels_last")
    return cpu


def fit_slope(
    task: Task,
    where: str = "run",
    scores: Sequence[float] = (),
    on: Device | None = None,
    resumed: bool = False,
    optimizer: Node = PLAIN_SGD,
    **settings: Any,
) -> dict[str, float]:
    """Train on 16 images of 8 px, two batches an epoch; the scores, if given, are the successive `val/accuracy`."""
    training, hardware, remaining = Training(**{**SETTINGS, **settings}), on or device(), iter(scores)
    run = Run(Path(where), "pretrain", OmegaConf.create({"seed": 0}), {}, resumed)
    try:
        images = torch.zeros(16, 3, 8, 8, dtype=torch.uint8)
        batches = Batches(images, None, training.batch_size, training.total_steps(16), 0, hardware)
        built = build_optimizer(optimizer, task, training.learning_rate)
        state = State(run, task, built, hardware, {}, "val/accuracy")
        return fit(
            task, batches, built, training, hardware, state, lambda: {"val/accuracy": next(remaining)} if scores else {}
        )
    finally:
        run.close("finished")


def metrics(where: str = "run") -> list[dict[str, Any]]:
    """Return the lines of `metrics.jsonl`."""
    return [json.loads(line) for line in Path(where, "metrics.jsonl").read_text().splitlines()]
