"""Trainings of a cross-validation: each a job of its own, without a run directory."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sslrun.base.errors import UserError
from sslrun.config.build import build
from sslrun.config.types import Node
from sslrun.data.balance import class_priors, effective_number_weights
from sslrun.data.images import Images
from sslrun.data.labels import Fold
from sslrun.models.classifier import Classifier
from sslrun.models.encoder import build_encoder
from sslrun.models.features import probabilities
from sslrun.tasks.finetuning.supervised import Finetuning
from sslrun.training.batches import Batches
from sslrun.training.loop import step_within_memory
from sslrun.training.optimizers import build_optimizer
from sslrun.training.settings import Training

# Settings of pretrained networks, and their values without effect.
FROM_SCRATCH: Node = {"freeze_batch_norm": False, "backbone_rate": 1.0, "layer_decay": 1.0, "head_rate": 1.0}


@dataclass(frozen=True)
class FoldTraining:
    """A training on the training part of a fold, as a worker process receives it.

    Arrays are NumPy's, since torch would pass tensors through shared memory, which is small in containers.

    Attributes:
        config: of the finetuning; nothing in it is `auto`.
        encoder: its initial weights.
        head: weight and bias; None for random ones.
        images: file of all images, `N x S x S x 3`, uint8.
        labels: N.
        classes: their number.
        fold: the positions of training and validation.
    """

    config: Node
    encoder: Mapping[str, np.ndarray]
    head: tuple[np.ndarray, np.ndarray] | None
    images: Path
    labels: np.ndarray
    classes: int
    fold: Fold


def finetuning(classifier: Classifier, config: Node, labels: Tensor, steps: int, pretrained: bool) -> Finetuning:
    """Return the task that trains a classifier with the settings of a finetuning.

    Args:
        config: of the finetuning, with `balance` resolved.
        labels: of the training images, from which the balancing follows.
        steps: of the whole training.
        pretrained: whether the encoder has pretrained weights.
    """
    classes = classifier.head.out_features
    return Finetuning(
        classifier,
        build(config["augment"]),
        config["label_smoothing"],
        freeze_steps=round(config["freeze_fraction"] * steps) if pretrained else 0,
        **({key: config[key] for key in FROM_SCRATCH} if pretrained else FROM_SCRATCH),
        class_weights=effective_number_weights(labels, classes) if config["balance"] == "weights" else None,
        class_priors=class_priors(labels, classes) if config["balance"] == "logit" else None,
    )


def images_of(job: FoldTraining) -> int:
    """Return the number of images that a training passes through the network."""
    training: Training = build(job.config["train"])
    n = len(job.fold.train)
    return training.total_steps(n) * min(n, training.batch_size)


def fold_probabilities(job: FoldTraining) -> np.ndarray:
    """Train a classifier on the training part of a fold; return probabilities of its validation, `images x classes`.

    Raises:
        UserError: the training diverged, or memory is full.
    """
    config, labels = job.config, torch.from_numpy(job.labels[job.fold.train])
    device = build(config["device"])
    torch.manual_seed(config["seed"])
    encoder = build_encoder(
        config["backbone"], config["dataset"]["image_size"], [0.5] * 3, [0.5] * 3, config["pooling"]
    )
    encoder.load_state_dict({k: torch.from_numpy(v) for k, v in job.encoder.items()})
    classifier = Classifier(encoder, job.classes)
    if job.head is not None:
        classifier.set_head(*map(torch.from_numpy, job.head))
    array = np.load(job.images, mmap_mode="c")
    every = Images([torch.from_numpy(array)], np.zeros((len(array), 0), dtype=np.uint8))
    images = every.take(job.fold.train).on(device.torch)
    training: Training = build(config["train"])
    total = training.total_steps(len(images))
    task = finetuning(classifier, config, labels, total, pretrained=job.head is not None)
    device.put(task)
    sampling = config["balance"] == "sampling"
    batches = Batches(images, labels.to(device.torch), training.batch_size, total, config["seed"], device, sampling)
    optimizer = build_optimizer(config["optimizer"], task, training.learning_rate)
    for step in batches.after(0):
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate_at(step.step, total, group["rate"])
        step_within_memory(task, step, total, optimizer, device, training.gradient_clip)
    p = probabilities(classifier, every.take(job.fold.val), device).numpy()
    if not np.isfinite(p).all():
        raise UserError(
            f"a training of the cross-validation diverged; try train.learning_rate={training.learning_rate / 10:.1g}"
        )
    return p
