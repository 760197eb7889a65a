"""Classifiers on top of an encoder: a linear head, and k nearest neighbors."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslrun.device import in_float32
from sslrun.models.encoder import Encoder

KNN_TEMPERATURE = 0.07  # Wu et al. 2018


def knn_probabilities(queries: Tensor, bank: Tensor, labels: Tensor, classes: int, k: int | None = None) -> Tensor:
    """Classify by the k nearest in cosine similarity s, with weights exp(s / 0.07) (Wu et al. 2018, eq. 5).

    Args:
        queries: `Q x D` features.
        bank: `N x D` features with `labels`, `N`.
        k: number of neighbors; by default a tenth of the bank, at least 20 and at most 200. Never more than N.

    Returns:
        Probabilities, `Q x classes`; rows sum to 1.
    """
    k = min(k or max(20, min(200, len(bank) // 10)), len(bank))
    bank = F.normalize(bank.float(), dim=1)
    out = []
    for chunk in F.normalize(queries.float(), dim=1).split(1024):
        with torch.autocast(chunk.device.type, enabled=False):  # bf16 is too coarse to rank neighbors
            similarity, index = (chunk @ bank.T).topk(k, 1)
        weights = ((similarity - 1) / KNN_TEMPERATURE).exp()  # -1 avoids overflow; the normalized votes stay the same
        votes = torch.zeros(len(chunk), classes, device=chunk.device)
        out.append(votes.scatter_add_(1, labels[index], weights))
    votes = torch.cat(out)
    return votes / votes.sum(1, keepdim=True).clamp(min=1e-30)


class Classifier(nn.Module):
    """An encoder with a linear head.

    Args:
        encoder: computes the features.
        classes: number of classes.
    """

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.feature_dim, classes)

    @torch.no_grad()
    def set_head(self, weight: Tensor, bias: Tensor) -> None:
        """Set the weights of the head, `classes x D` and `classes`."""
        self.head.weight.copy_(weight)
        self.head.bias.copy_(bias)

    def probabilities(self, images: Tensor) -> Tensor:
        """Return class probabilities, `N x classes`, of images, `N x 3 x S x S` in [0, 1]."""
        return self.probabilities_of(self.encoder(images))

    def probabilities_of(self, features: Tensor) -> Tensor:
        """Return class probabilities, `N x classes`, of features, `N x D`."""
        return in_float32(self.head, features).softmax(1)


class KNNClassifier(nn.Module):
    """A k-nearest-neighbor classifier on the features of labeled images, see `knn_probabilities`.

    Args:
        encoder: computes the features.
        classes: number of classes.
        bank: number of labeled images.
    """

    bank: Tensor
    labels: Tensor

    def __init__(self, encoder: Encoder, classes: int, bank: int) -> None:
        super().__init__()
        self.encoder, self.classes = encoder, classes
        self.register_buffer("bank", torch.zeros(bank, encoder.feature_dim))
        self.register_buffer("labels", torch.zeros(bank, dtype=torch.int64))

    def set_bank(self, features: Tensor, labels: Tensor) -> None:
        """Set the features of the labeled images, `bank x D`, and their labels, `bank`."""
        self.bank.copy_(features)
        self.labels.copy_(labels)

    def probabilities(self, images: Tensor) -> Tensor:
        """Return class probabilities, `N x classes`, of images, `N x 3 x S x S` in [0, 1]."""
        return self.probabilities_of(self.encoder(images))

    def probabilities_of(self, features: Tensor) -> Tensor:
        """Return class probabilities, `N x classes`, of features, `N x D`."""
        return knn_probabilities(features, self.bank, self.labels, self.classes)
