"""SimCLR: contrastive learning with two views per image (Chen et al. 2020)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sslrun.augment import Augment, Rng
from sslrun.base.processes import gathered
from sslrun.config.types import Node, Positive, PositiveInt, TwoOrMore
from sslrun.device import in_float32
from sslrun.models.encoder import Encoder
from sslrun.tasks.heads import mlp
from sslrun.tasks.task import Task


class SimCLR(Task):
    """Contrastive learning: the projections of two views of an image attract each other, all others repel.

    The projection head is discarded after pretraining.

    Args:
        augment: draws the two views; results depend strongly on its strength.
        loss: `ntxent` (Chen et al., eq. 1) or `dcl`, decoupled, better with small batches (Yeh et al. 2022, eq. 5).
        temperature: 0.1 to 0.2 for short runs, 0.5 for long ones.
        hidden_dim, output_dim, layers: of the projection head, an MLP with batch norm.
    """

    def __init__(
        self,
        encoder: Encoder,
        image_size: int,
        *,
        augment: Node | Augment,
        loss: Literal["ntxent", "dcl"],
        temperature: Positive,
        hidden_dim: PositiveInt,
        output_dim: TwoOrMore,
        layers: Literal[1, 2, 3],
    ) -> None:
        super().__init__()
        assert callable(augment)
        self.encoder, self.augment, self.temperature = encoder, augment, temperature
        self.loss_name, self.loss = LOSSES[loss]
        self.projector = mlp(encoder.feature_dim, *[hidden_dim] * (layers - 1), output_dim)

    def extra_repr(self) -> str:
        """Return the loss and its temperature, for the log and `print`."""
        return f"loss {self.loss_name}, temperature {self.temperature:g}"

    def views(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Return two views of each image."""
        return {"view 1": self.augment(images, rng), "view 2": self.augment(images, rng)}

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        """Return the loss, and the fraction of views whose nearest neighbor is the other view of their image."""
        views = self.views(batch["images"], rng)
        z = gathered(in_float32(self.projector, self.encoder(torch.cat(list(views.values())))), views=2)
        with torch.autocast(z.device.type, enabled=False):
            similarity = cosine(z)
            loss = self.loss(similarity, self.temperature)
        positive = similarity.detach().diagonal(len(z) // 2)
        hits = torch.cat([positive, positive]) >= similarity.detach().max(1).values
        return {"loss": loss, "pretext_accuracy": hits.float().mean()}


def cosine(z: Tensor) -> Tensor:
    """Return the cosine similarities of `2N x D` projections, `2N x 2N`, with -inf on the diagonal.

    Rows i and i + N are the two views of image i.
    """
    z = F.normalize(z, dim=1)
    return (z @ z.T).fill_diagonal_(float("-inf"))


def ntxent(similarity: Tensor, temperature: float) -> Tensor:
    """Return the normalized temperature-scaled cross-entropy (Chen et al. 2020, eq. 1), mean over the 2N rows."""
    n = len(similarity) // 2
    positive = similarity.diagonal(n)
    return (similarity / temperature).logsumexp(1).mean() - positive.mean() / temperature


def dcl(similarity: Tensor, temperature: float) -> Tensor:
    """Return the decoupled contrastive loss (Yeh et al. 2022, eq. 5): NT-Xent with a denominator of negatives only."""
    n = len(similarity) // 2
    positive = similarity.diagonal(n)
    others = similarity.clone()
    for k in (n, -n):
        others.diagonal(k).fill_(float("-inf"))
    return (others / temperature).logsumexp(1).mean() - positive.mean() / temperature


LOSSES = {"ntxent": ("NT-Xent", ntxent), "dcl": ("DCL", dcl)}  # by the value of `loss`
