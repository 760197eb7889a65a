"""BYOL: predict a moving average's projection of another view (Grill et al. 2020)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sslrun.augment import Augment, Rng
from sslrun.config.types import Node, PositiveInt, Share, TwoOrMore
from sslrun.device import in_float32
from sslrun.models.encoder import Encoder
from sslrun.tasks.heads import mlp
from sslrun.tasks.task import Task
from sslrun.tasks.teacher import Teacher, decay_at


class BYOL(Task):
    """The predictor maps the projection of one view to the teacher's projection of the other, without negatives.

    Loss: 2 - 2 cos (Grill et al., eq. 2), a mean of both directions (the paper has their sum); 2 for random vectors, 0
    for a perfect prediction, which a collapsed network reaches, too. Very small networks and high learning rates may
    collapse: see the logged spread.

    Args:
        augment: draws the two views.
        momentum: decay of the teacher at the first step; it rises to 1 by a cosine.
        hidden_dim, output_dim: of the projection head and of the predictor.
    """

    def __init__(
        self,
        encoder: Encoder,
        image_size: int,
        *,
        augment: Node | Augment,
        momentum: Share,
        hidden_dim: PositiveInt,
        output_dim: TwoOrMore,
    ) -> None:
        super().__init__()
        assert callable(augment)
        self.encoder, self.augment, self.momentum = encoder, augment, momentum
        self.projector = mlp(encoder.feature_dim, hidden_dim, output_dim)
        self.predictor = mlp(output_dim, hidden_dim, output_dim)
        self.teacher = Teacher(encoder=encoder, projector=self.projector)

    def views(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Return two views of each image."""
        return {"view 1": self.augment(images, rng), "view 2": self.augment(images, rng)}

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        """Return the loss."""
        views = torch.cat(list(self.views(batch["images"], rng).values()))
        predicted = in_float32(self.predictor, in_float32(self.projector, self.encoder(views)))
        return {"loss": byol_loss(predicted, self.teacher(views))}

    def after_step(self, step: int, total: int) -> None:
        """Update the teacher."""
        self.teacher.follow(self, decay_at(step, total, self.momentum))


def byol_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Return 2 - 2 cos between the prediction from each view and the target of the other, a mean over `2N`.

    Args:
        predicted, target: `2N x D`; rows i and i + N are the two views of image i.
    """
    return 2 - 2 * F.cosine_similarity(predicted, target.roll(len(target) // 2, 0)).mean()
