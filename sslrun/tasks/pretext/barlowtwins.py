"""Barlow Twins: make the cross-correlation of two views the identity (Zbontar et al. 2021)."""

import torch
from torch import Tensor

from sslrun.augment import Augment, Rng
from sslrun.base.processes import gathered
from sslrun.config.types import Node, NotNegative, PositiveInt, TwoOrMore
from sslrun.device import in_float32
from sslrun.models.encoder import Encoder
from sslrun.tasks.heads import mlp
from sslrun.tasks.task import Task

EPSILON = 1e-5  # of batch norm


class BarlowTwins(Task):
    """Each dimension of the projection is the same for both views, and uncorrelated with all other dimensions.

    Loss: sum_i (1 - c_ii)^2 + redundancy_weight sum_{i != j} c_ij^2 (Zbontar et al., eq. 1), divided by the number of
    dimensions; about 1 for random projections, 1 for constant ones. Batches below about 64 images estimate the
    correlations badly.

    Args:
        augment: draws the two views.
        redundancy_weight: of the off-diagonal correlations (lambda).
        hidden_dim, output_dim: of the projection head of three layers.
    """

    def __init__(
        self,
        encoder: Encoder,
        image_size: int,
        *,
        augment: Node | Augment,
        redundancy_weight: NotNegative,
        hidden_dim: PositiveInt,
        output_dim: TwoOrMore,
    ) -> None:
        super().__init__()
        assert callable(augment)
        self.encoder, self.augment, self.redundancy_weight = encoder, augment, redundancy_weight
        self.projector = mlp(encoder.feature_dim, hidden_dim, hidden_dim, output_dim)

    def views(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Return two views of each image."""
        return {"view 1": self.augment(images, rng), "view 2": self.augment(images, rng)}

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        """Return the loss, and the mean correlation of the same dimension of the two views."""
        views = torch.cat(list(self.views(batch["images"], rng).values()))
        z = gathered(in_float32(self.projector, self.encoder(views)), views=2)
        with torch.autocast(z.device.type, enabled=False):
            c = cross_correlation(*z.chunk(2))
            loss = barlow_loss(c, self.redundancy_weight)
        return {"loss": loss, "correlation": c.detach().diagonal().mean()}


def cross_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return the correlations, `D x D`, of the dimensions of `N x D` projections over the batch."""
    a, b = ((z - z.mean(0)) / (z.var(0, correction=0) + EPSILON).sqrt() for z in (a, b))
    return a.T @ b / len(a)


def barlow_loss(c: Tensor, redundancy_weight: float) -> Tensor:
    """Return the loss of a cross-correlation, `D x D`, divided by D."""
    diagonal = c.diagonal()
    rest = c.square().sum() - diagonal.square().sum()
    return ((1 - diagonal).square().sum() + redundancy_weight * rest) / len(c)
