"""Supervised finetuning: augmentation, cross-entropy, freezing of the encoder."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslrun.augment import Augment, Rng
from sslrun.data.balance import log_priors
from sslrun.device import in_float32
from sslrun.models.classifier import Classifier
from sslrun.models.encoder import Encoder
from sslrun.tasks.task import Task

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
STAGES = 4  # of a backbone, whose learning rates differ


class Finetuning(Task):
    """Train a classifier with cross-entropy on augmented images.

    Args:
        classifier: the classifier to train.
        augment: augmentation of the training images.
        label_smoothing: as in Szegedy et al. 2016.
        freeze_steps: number of steps that train only the head; the whole encoder is frozen, batch norm statistics, too.
        freeze_batch_norm: keep the running statistics of batch norm for the whole training.
        backbone_rate: multiple of the learning rate for the backbone's last stage.
        layer_decay: learning rate of each earlier stage of the backbone as a multiple of the next one's (`stages_of`).
        head_rate: multiple of the learning rate for the head.
        class_weights: weight of each class in the mean of the loss.
        class_priors: frequency of each class, for logit adjustment of the loss. Labels are then smoothed towards these
            frequencies: a uniform distribution would be that of classes more frequent than the rare ones are.
    """

    downstream: ClassVar[str] = "classifier.encoder"

    def __init__(
        self,
        classifier: Classifier,
        augment: Augment,
        label_smoothing: float,
        freeze_steps: int,
        freeze_batch_norm: bool,
        backbone_rate: float,
        layer_decay: float = 1.0,
        head_rate: float = 1.0,
        class_weights: Tensor | None = None,
        class_priors: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.classifier, self.augment = classifier, augment
        self.label_smoothing, self.freeze_steps = label_smoothing, freeze_steps
        self.freeze_batch_norm = freeze_batch_norm
        self.backbone_rate, self.layer_decay, self.head_rate = backbone_rate, layer_decay, head_rate
        self.frozen = False
        self.class_weights: Tensor | None
        self.class_priors: Tensor | None
        self.register_buffer("class_weights", class_weights, persistent=False)  # they follow from the labels
        self.register_buffer("class_priors", class_priors, persistent=False)

    def learning_rates(self) -> dict[str, float]:
        """Return multiples of the learning rate: of the head, and of each parameter of the backbone by its stage."""
        stages = stages_of(self.classifier.encoder)
        last = max(stages.values(), default=0)
        rates = {k: self.backbone_rate * self.layer_decay ** (last - stage) for k, stage in stages.items()}
        return {"classifier.head.": self.head_rate} | {f"{self.downstream}.{k}": rate for k, rate in rates.items()}

    def before_step(self, step: int, total: int) -> None:
        """Set training mode, and evaluation mode for frozen modules."""
        self.train()
        self.frozen = step < self.freeze_steps
        if self.frozen:
            self.classifier.encoder.eval()
        elif self.freeze_batch_norm:
            for module in self.classifier.encoder.modules():
                if isinstance(module, BATCH_NORMS):
                    module.eval()

    def views(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Return one augmented view of each image."""
        return {"view": self.augment(images, rng)}

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        """Return the loss and the accuracy on the augmented images."""
        images = self.augment(batch["images"], rng)
        with torch.set_grad_enabled(not self.frozen and torch.is_grad_enabled()):
            features = self.classifier.encoder(images)
        logits = in_float32(self.classifier.head, features)
        labels, smoothing = batch["labels"], self.label_smoothing
        return {
            "loss": smoothed_loss(logits, labels, smoothing, self.class_weights, self.class_priors),
            "accuracy": (logits.argmax(1) == labels).float().mean(),
        }


def smoothed_loss(
    logits: Tensor,
    labels: Tensor,
    label_smoothing: float,
    class_weights: Tensor | None = None,
    class_priors: Tensor | None = None,
) -> Tensor:
    """Return the mean cross-entropy of N x C logits with smoothed labels; for the other arguments see `Finetuning`."""
    if class_priors is not None:
        certain = F.one_hot(labels, len(class_priors)).to(class_priors.dtype)
        return F.cross_entropy(logits + log_priors(class_priors), certain.lerp(class_priors, label_smoothing))
    if class_weights is not None:
        losses = F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")
        return (losses * class_weights[labels]).mean()  # not divided by the weights of the batch
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)


def stages_of(encoder: Encoder) -> dict[str, int]:
    """Return the stage, from 0, of each parameter of an encoder: four stages, the backbone's layers in equal parts.

    A layer is a weight matrix or convolution and the vectors that follow it, in the order of the backbone's parameters.
    The stages of ResNet-18 and `smallcnn` are their own.
    """
    parameters = dict(encoder.named_parameters())
    layers = sum(p.ndim > 1 for p in parameters.values())
    stages, layer = {}, -1
    for name, p in parameters.items():
        layer += p.ndim > 1
        stages[name] = max(0, layer) * min(STAGES, layers) // max(1, layers)
    return stages
