"""SwAV: predict the cluster of one view from another (Caron et al. 2020); two crops, without a queue."""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslrun.augment import Augment, Rng
from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.base.processes import gathered
from sslrun.config.types import Node, Positive, PositiveInt, Share, TwoOrMore
from sslrun.device import in_float32
from sslrun.models.encoder import Encoder
from sslrun.tasks.heads import mlp
from sslrun.tasks.task import Task

MAX_PROTOTYPES = 128  # prototypes of `auto`


class SwAV(Task):
    """The assignment of one view to prototypes, balanced over the batch, is predicted from the other view.

    Loss: cross-entropy (Caron et al., eq. 2), a mean of both directions; ln(prototypes) for a uniform prediction, and
    at least that where all images have the same projection. It fails with more prototypes than images in a batch, which
    cannot be balanced.

    Args:
        augment: draws the two views.
        prototypes: their number; `auto` is 128, or the batch size, if that is smaller.
        temperature: of the prediction.
        epsilon: of the assignments; smaller ones are sharper.
        iterations: of Sinkhorn-Knopp.
        freeze: fraction of the steps in which the prototypes are not trained.
        hidden_dim, output_dim: of the projection head.
    """

    def __init__(
        self,
        encoder: Encoder,
        image_size: int,
        *,
        augment: Node | Augment,
        prototypes: TwoOrMore | Literal["auto"],
        temperature: Positive,
        epsilon: Positive,
        iterations: Annotated[int, Field(ge=1, le=1000)],
        freeze: Share,
        hidden_dim: PositiveInt,
        output_dim: TwoOrMore,
    ) -> None:
        super().__init__()
        assert callable(augment)
        self.encoder, self.augment, self.temperature = encoder, augment, temperature
        self.epsilon, self.iterations, self.freeze = epsilon, iterations, freeze
        self.projector = mlp(encoder.feature_dim, hidden_dim, output_dim)
        self.auto = prototypes == "auto"
        self.count = MAX_PROTOTYPES if isinstance(prototypes, str) else prototypes
        self.prototypes = nn.Parameter(torch.zeros(0, output_dim))  # drawn by `set_sizes`

    def set_sizes(self, images: int, batch_size: int) -> None:
        """Draw the prototypes, no more than there are images in a batch; raise if more are given."""
        count = self.count
        if self.auto and count > batch_size:
            count = batch_size
            log.info("pretext.prototypes=auto is %d, the batch size", batch_size)
        if count > batch_size:
            raise UserError(f"pretext.prototypes={count} is more than a batch has images: {batch_size}")
        self.prototypes = nn.Parameter(F.normalize(torch.randn(count, self.prototypes.shape[1]), dim=1))

    def before_step(self, step: int, total: int) -> None:
        """Normalize the prototypes, and freeze them in the first steps."""
        with torch.no_grad():
            self.prototypes.copy_(F.normalize(self.prototypes, dim=1))
        self.prototypes.requires_grad_(step >= self.freeze * total)

    def views(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Return two views of each image."""
        return {"view 1": self.augment(images, rng), "view 2": self.augment(images, rng)}

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        """Return the loss, and how many prototypes the batch uses, as the exponential of the entropy."""
        views = torch.cat(list(self.views(batch["images"], rng).values()))
        z = in_float32(self.projector, self.encoder(views))
        with torch.autocast(z.device.type, enabled=False):
            scores = gathered(F.normalize(z, dim=1) @ self.prototypes.T, views=2)
            loss = swapped_loss(scores, self.temperature, self.epsilon, self.iterations)
            used = (scores.detach() / self.temperature).softmax(1).mean(0)
            return {"loss": loss, "prototype_perplexity": torch.special.entr(used).sum().exp()}


def swapped_loss(scores: Tensor, temperature: float, epsilon: float, iterations: int) -> Tensor:
    """Return the cross-entropy of the prediction from each view and the assignment of the other.

    Args:
        scores: `2N x K`, similarities with the prototypes; rows i and i + N are the two views of image i.
    """
    with torch.no_grad():
        codes = torch.cat([sinkhorn(view, epsilon, iterations) for view in scores.chunk(2)])
    return -(codes.roll(len(codes) // 2, 0) * (scores / temperature).log_softmax(1)).sum(1).mean()


def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Return assignments of N images to K prototypes that use all prototypes equally (Caron et al., eq. 3 to 5).

    Args:
        scores: `N x K`.

    Returns:
        `N x K`; rows sum to 1, columns after many iterations to N / K.
    """
    q = scores / epsilon
    for _ in range(iterations):
        q = q - q.logsumexp(0, keepdim=True)
        q = q - q.logsumexp(1, keepdim=True)
    return q.exp()
