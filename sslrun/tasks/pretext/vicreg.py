"""VICReg: variance, invariance and covariance of two views (Bardes et al. 2022)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sslrun.augment import Augment, Rng
from sslrun.base.processes import gathered
from sslrun.config.types import Node, NotNegative, PositiveInt, TwoOrMore
from sslrun.device import in_float32
from sslrun.models.encoder import Encoder
from sslrun.tasks.heads import mlp
from sslrun.tasks.task import Task

EPSILON = 1e-4  # of the standard deviation, as in the paper


class VICReg(Task):
    """The projections of two views agree, each dimension has a standard deviation of 1, and no two are correlated.

    Loss: Bardes et al., eq. 6, with the invariance as in the authors' code: a mean over dimensions, where eq. 5 has
    the sum. For constant projections the variance term is its maximum, 0.99, and the others are 0.

    Args:
        augment: draws the two views.
        invariance_weight, variance_weight, covariance_weight: of the three terms.
        hidden_dim, output_dim: of the projection head (expander) of three layers.
    """

    def __init__(
        self,
        encoder: Encoder,
        image_size: int,
        *,
        augment: Node | Augment,
        invariance_weight: NotNegative,
        variance_weight: NotNegative,
        covariance_weight: NotNegative,
        hidden_dim: PositiveInt,
        output_dim: TwoOrMore,
    ) -> None:
        super().__init__()
        assert callable(augment)
        self.encoder, self.augment = encoder, augment
        if not invariance_weight + variance_weight + covariance_weight > 0:
            raise ValueError("one of pretext.invariance_weight, variance_weight and covariance_weight must be above 0")
        self.weights = {"invariance": invariance_weight, "variance": variance_weight, "covariance": covariance_weight}
        self.projector = mlp(encoder.feature_dim, hidden_dim, hidden_dim, output_dim)

    def views(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Return two views of each image."""
        return {"view 1": self.augment(images, rng), "view 2": self.augment(images, rng)}

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        """Return the loss, and its three terms without their weights."""
        views = torch.cat(list(self.views(batch["images"], rng).values()))
        z = gathered(in_float32(self.projector, self.encoder(views)), views=2)
        with torch.autocast(z.device.type, enabled=False):
            terms = vicreg_terms(*z.chunk(2))
        loss = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}


def vicreg_terms(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Return the invariance, variance and covariance of projections, each `N x D`, of two views.

    The covariance (eq. 4) is the sum over the two views, as in eq. 6; the variance (eq. 1) is their mean, as in the
    authors' code, for which the weights were chosen.
    """
    variance, covariance = [], []
    for z in (a, b):
        z = z - z.mean(0)
        c = z.T @ z / (len(z) - 1)
        variance.append(F.relu(1 - (c.diagonal() + EPSILON).sqrt()).mean())
        covariance.append((c.square().sum() - c.diagonal().square().sum()) / len(c))
    return {
        "invariance": F.mse_loss(a, b),
        "variance": (variance[0] + variance[1]) / 2,
        "covariance": covariance[0] + covariance[1],
    }
