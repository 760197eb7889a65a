"""A network with its initial weights: its features of the labeled images, and classifiers on them."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sslrun.data.balance import Balance, class_priors, effective_number_weights, inverse_frequency_weights
from sslrun.data.dataset import Dataset
from sslrun.data.labels import Fold
from sslrun.device import Device
from sslrun.evaluation.probe import (
    C_VALUES,
    DEFAULT_C,
    POOLINGS,
    FoldRegression,
    assembled,
    fold_regressions,
    regression,
)
from sslrun.evaluation.selection import Predictions, choose
from sslrun.models.classifier import knn_probabilities
from sslrun.models.encoder import Encoder, Pooling
from sslrun.models.features import pooled_features
from sslrun.tasks.finetuning.supervised import smoothed_loss
from sslrun.training.jobs import in_order, one_torch_thread

LOG_SCALES = (-7.0, 7.0)  # range of the natural logarithm of the scale of an initial head
LEAST_SMOOTHING = 0.01  # of labels, for this scale: without smoothing it would be infinite for separable images


class Frozen:
    """An encoder with its initial weights: features of the labeled images, and logistic regressions on them.

    Args:
        pooling: a pooling, or `auto` to choose the one with the more accurate regression.
        data: labeled images, then those of a validation split.
        folds: for the regressions; without any, the choices are `average` and C = 1.
        knn: the pooling is for a kNN classifier.
        parallel: fit the regressions of several folds at the same time, on all cores.

    Attributes:
        state: the initial weights, on the CPU.
        features: `N x D` by pooling.
        variants: the names of the regressions (or kNN classifiers), `pooling C=...`.
        probabilities: of these, `variants x N x classes`; NaN for images in no validation part.
        pooling, c: the best ones.
    """

    def __init__(
        self,
        encoder: Encoder,
        pooling: Pooling | str,
        data: Dataset,
        folds: Sequence[Fold],
        device: Device,
        balance: Balance,
        knn: bool = False,
        parallel: bool = False,
    ) -> None:
        assert data.labels is not None
        self.encoder, self.data, self.classes, self.balance = encoder, data, len(data.class_names), balance
        self.state = {k: v.detach().cpu().clone().numpy() for k, v in encoder.state_dict().items()}
        self.poolings: list[Pooling] = list(POOLINGS) if pooling == "auto" else [pooling]  # type: ignore[list-item]
        self.features = pooled_features(encoder, data.images, device, self.poolings)
        labels = data.labels
        if knn:
            variants = [(p, DEFAULT_C) for p in self.poolings]
            blocks = [_knn(self.features[p], labels, folds, self.classes)[None] for p in self.poolings]
        else:
            variants = [(p, c) for p in self.poolings for c in C_VALUES]
            blocks = self._regressions(folds, parallel)
        self.variants = [p if knn else f"{p} C={c:g}" for p, c in variants]
        self.probabilities = np.concatenate(blocks)
        self.pooling, self.c = self.poolings[0], DEFAULT_C
        if folds:
            predictions = Predictions([""] * len(variants), self.probabilities, labels.numpy(), balance != "none")
            self.pooling, self.c = variants[choose(predictions)]
        encoder.pooling = self.pooling

    def _regressions(self, folds: Sequence[Fold], parallel: bool) -> list[np.ndarray]:
        """Return the probabilities of the regressions for each pooling; every fold is a job."""
        of_poolings = [
            fold_regressions(self.features[p], self.labels, folds, self.classes, self.balance) for p in self.poolings
        ]
        results = in_order(FoldRegression.probabilities, [job for jobs in of_poolings for job in jobs], parallel)
        n = len(folds)
        return [
            assembled(results[i * n : (i + 1) * n], folds, len(self.labels), self.classes)
            for i in range(len(self.poolings))
        ]

    @property
    def labels(self) -> Tensor:
        """Return the N labels."""
        assert self.data.labels is not None
        return self.data.labels

    def head(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return weight and bias of the regression of these images' labels on their features."""
        at = torch.from_numpy(rows)
        with one_torch_thread():  # the last digits may depend on their number
            return regression(self.features[self.pooling][at], self.labels[at], self.classes, self.c, self.balance)

    def initial_head(self, rows: np.ndarray, label_smoothing: float) -> tuple[Tensor, Tensor]:
        """Return the head with which a finetuning of these images starts: `head`, with the logits scaled.

        Every logit is multiplied by the number with which the loss of the finetuning, with its balance, is lowest. The
        predictions stay the same, but the logits of a regression may be far from what the loss asks for, by its C of
        0.0001 to 100, and the first steps would change the features only to change the scale of the logits.
        """
        from scipy.optimize import minimize_scalar

        weight, bias = self.head(rows)
        at = torch.from_numpy(rows)
        labels, index = self.labels[at].unique(return_inverse=True)
        logits = (self.features[self.pooling][at] @ weight.T + bias)[:, labels].double()
        smoothing, classes = max(label_smoothing, LEAST_SMOOTHING), len(labels)
        weigh = {"weights": effective_number_weights, "sampling": inverse_frequency_weights}.get(self.balance)
        weights = weigh(index, classes) if weigh else None
        priors = class_priors(index, classes).double() if self.balance == "logit" else None

        def loss(logarithm: float) -> float:
            return float(smoothed_loss(logits * math.exp(logarithm), index, smoothing, weights, priors))

        scale = math.exp(minimize_scalar(loss, bounds=LOG_SCALES, method="bounded").x)
        return weight * scale, bias * scale


def _knn(features: Tensor, labels: Tensor, folds: Sequence[Fold], classes: int) -> np.ndarray:
    out = np.full((len(labels), classes), np.nan, dtype=np.float32)
    for fold in folds:
        train, val = torch.from_numpy(fold.train), torch.from_numpy(fold.val)
        out[fold.val] = knn_probabilities(features[val], features[train], labels[train], classes).numpy()
    return out
