"""SimSiam: predict the projection of another view, with a stopped gradient (Chen & He 2021)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sslrun.augment import Augment, Rng
from sslrun.config.types import Node, PositiveInt, TwoOrMore
from sslrun.device import in_float32
from sslrun.models.encoder import Encoder
from sslrun.tasks.heads import mlp
from sslrun.tasks.task import Task


class SimSiam(Task):
    """The predictor maps the projection of one view to that of the other, which gets no gradient.

    Loss: the negative cosine similarity, symmetrized (Chen & He, eq. 2); 0 for random vectors, -1 for a perfect
    prediction, which a collapsed network reaches, too. It fails with weak views and with high weight decay of the
    predictor, and needs more steps than contrastive tasks.

    Args:
        augment: draws the two views.
        hidden_dim: of the projection head.
        output_dim: of the projection head, which ends in batch norm.
        bottleneck: hidden layer of the predictor.
    """

    def __init__(
        self,
        encoder: Encoder,
        image_size: int,
        *,
        augment: Node | Augment,
        hidden_dim: PositiveInt,
        output_dim: TwoOrMore,
        bottleneck: PositiveInt,
    ) -> None:
        super().__init__()
        assert callable(augment)
        self.encoder, self.augment = encoder, augment
        self.projector = mlp(encoder.feature_dim, hidden_dim, output_dim, last_norm=True)
        self.predictor = mlp(output_dim, bottleneck, output_dim)

    def views(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Return two views of each image."""
        return {"view 1": self.augment(images, rng), "view 2": self.augment(images, rng)}

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        """Return the loss."""
        views = torch.cat(list(self.views(batch["images"], rng).values()))
        z = in_float32(self.projector, self.encoder(views))
        return {"loss": negative_cosine(in_float32(self.predictor, z), z.detach())}


def negative_cosine(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the negative cosine between the prediction from each view and the target of the other, a mean over `2N`.

    Args:
        predicted, target: `2N x D`; rows i and i + N are the two views of image i.
    """
    return -F.cosine_similarity(predicted, target.roll(len(target) // 2, 0)).mean()
