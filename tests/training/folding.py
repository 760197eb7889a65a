"""Shared by tests of cross-validation: small images of two classes, a small network, and a config to train it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslrun.config.types import Node
from sslrun.data.dataset import Dataset
from sslrun.data.images import Images, digests
from sslrun.data.labels import Fold
from sslrun.models.encoder import Encoder, build_encoder
from sslrun.training.folds import FoldTraining
from tests.helpers import ADAMW, IDENTITY

CONFIG: Node = {
    "init": "simclr", "mode": "auto", "seed": 0, "pooling": "average", "balance": "none", "search": [],
    "label_smoothing": 0.0, "freeze_fraction": 0.0, "freeze_batch_norm": False,
    "head_rate": 1.0, "backbone_rate": 1.0, "layer_decay": 1.0,
    "augment": {"_target_": "sslrun.augment.Augment", **IDENTITY},
    "backbone": {"_target_": "sslrun.models.backbones.smallcnn.smallcnn", "widths": [4, 8]},
    "dataset": {"image_size": 8},
    "device": {"_target_": "sslrun.device.Device", "name": "cpu", "precision": "fp32",
               "memory_format": "channels_last", "compile": None, "deterministic": False,
               "threads": None},
    "optimizer": ADAMW,
    "train": {"_target_": "sslrun.training.settings.Training", "epochs": None, "steps": 6, "batch_size": 8,
              "learning_rate": 0.01, "warmup_fraction": 0.0, "gradient_clip": None, "evaluations": 1, "log_every": 1,
              "save_minutes": 5.0, "keep_every": None},
}  # fmt: skip


def changed(**keys: Any) -> Node:
    """Return the config with other values; those of `train` are given by their names."""
    train = {**CONFIG["train"], **{k: v for k, v in keys.items() if k in CONFIG["train"]}}
    return {**CONFIG, **{k: v for k, v in keys.items() if k not in CONFIG["train"]}, "train": train}


def red_and_blue(n: int, groups: list[str] | None = None) -> Dataset:
    """Return noisy images, red and blue ones alternately."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 2
    pixels = rng.integers(0, 120, (n, 8, 8, 3)).astype(np.uint8)
    pixels[np.arange(n), :, :, 2 * labels] += 100
    names = [f"{i}.png" for i in range(n)]
    data = Dataset(
        Images([torch.from_numpy(pixels)], digests(pixels)), torch.from_numpy(labels), ["red", "blue"], names
    )
    data.groups = None if groups is None else np.array(groups, dtype=object)
    return data


def encoder(seed: int = 0, widths: tuple[int, ...] = (4, 8)) -> Encoder:
    """Return a network whose normalization is not the one that fold trainings build it with."""
    torch.manual_seed(seed)
    return build_encoder({**CONFIG["backbone"], "widths": list(widths)}, 8, [0.4, 0.3, 0.2], [0.2, 0.3, 0.4], "average")


def training(
    config: Node, data: Dataset, fold: Fold, network: Encoder, head: tuple[Tensor, Tensor] | None = None
) -> FoldTraining:
    """Return the training of a fold; its images are written to the current folder."""
    assert data.labels is not None
    np.save("images.npy", data.images[:].permute(0, 2, 3, 1).numpy())
    state = {k: v.numpy().copy() for k, v in network.state_dict().items()}
    arrays = None if head is None else (head[0].numpy(), head[1].numpy())
    return FoldTraining(config, state, arrays, Path("images.npy").resolve(), data.labels.numpy().copy(), 2, fold)
