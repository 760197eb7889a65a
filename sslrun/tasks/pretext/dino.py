"""DINO: self-distillation without labels (Caron et al. 2021), for convolutional networks; two crops."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslrun.augment import Augment, Rng
from sslrun.base.processes import gathered
from sslrun.config.types import Node, Positive, PositiveInt, Share, TwoOrMore
from sslrun.device import in_float32
from sslrun.models.encoder import Encoder
from sslrun.tasks.heads import mlp
from sslrun.tasks.task import Task
from sslrun.tasks.teacher import Teacher, decay_at


class Head(nn.Module):
    """A projection head, l2-normalization, and prototypes of unit norm."""

    def __init__(self, in_dim: int, hidden_dim: int, bottleneck: int, output_dim: int) -> None:
        super().__init__()
        self.projector = mlp(in_dim, hidden_dim, hidden_dim, bottleneck)
        self.prototypes = nn.Parameter(torch.randn(output_dim, bottleneck))

    def forward(self, x: Tensor) -> Tensor:
        """Return the similarities with the prototypes, `N x output_dim`."""
        return F.normalize(self.projector(x), dim=1) @ F.normalize(self.prototypes, dim=1).T


class DINO(Task):
    """The student predicts the teacher's distribution over outputs from the other view; the teacher goes downstream.

    The teacher is a moving average; its outputs are centered and sharpened, which together prevent collapse. Loss:
    cross-entropy (Caron et al., eq. 3); ln(output_dim) where both outputs are uniform, 0 where all images have
    the same one: both are collapse. It needs many steps: the teacher follows slowly.

    Args:
        augment: draws the two views.
        momentum: decay of the teacher at the first step; it rises to 1 by a cosine.
        center_momentum: decay of the center of the teacher's outputs.
        temperature, teacher_temperature: of the student and of the teacher.
        freeze: fraction of the steps in which the prototypes are not trained.
        hidden_dim, bottleneck, output_dim: of the projection head, and number of prototypes.
    """

    downstream = "teacher.encoder"
    center: Tensor

    def __init__(
        self,
        encoder: Encoder,
        image_size: int,
        *,
        augment: Node | Augment,
        momentum: Share,
        center_momentum: Share,
        temperature: Positive,
        teacher_temperature: Positive,
        freeze: Share,
        hidden_dim: PositiveInt,
        bottleneck: PositiveInt,
        output_dim: TwoOrMore,
    ) -> None:
        super().__init__()
        assert callable(augment)
        self.encoder, self.augment, self.momentum, self.freeze = encoder, augment, momentum, freeze
        self.center_momentum = center_momentum
        self.temperature, self.teacher_temperature = temperature, teacher_temperature
        self.head = Head(encoder.feature_dim, hidden_dim, bottleneck, output_dim)
        self.teacher = Teacher(encoder=encoder, head=self.head)
        self.register_buffer("center", torch.zeros(output_dim))
        self.outputs = torch.zeros(1, output_dim)  # the teacher's, of the batch of all processes

    def before_step(self, step: int, total: int) -> None:
        """Freeze the prototypes in the first steps."""
        self.head.prototypes.requires_grad_(step >= self.freeze * total)

    def views(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Return two views of each image."""
        return {"view 1": self.augment(images, rng), "view 2": self.augment(images, rng)}

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        """Return the loss, and the entropy of the teacher's distribution for an image."""
        views = torch.cat(list(self.views(batch["images"], rng).values()))
        student = in_float32(self.head, self.encoder(views))
        outputs = self.teacher(views)
        self.outputs = gathered(outputs, views=2)
        with torch.autocast(student.device.type, enabled=False):
            target = ((outputs - self.center) / self.teacher_temperature).softmax(1)
            loss = dino_loss(student / self.temperature, target)
            return {"loss": loss, "teacher_entropy": torch.special.entr(target).sum(1).mean()}

    @torch.no_grad()
    def after_step(self, step: int, total: int) -> None:
        """Update the teacher and the center."""
        self.teacher.follow(self, decay_at(step, total, self.momentum))
        self.center.lerp_(self.outputs.mean(0), 1 - self.center_momentum)


def dino_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy of the student's logits from each view and the teacher's distribution for the other.

    Args:
        logits, target: `2N x K`; rows i and i + N are the two views of image i.
    """
    return -(target.roll(len(target) // 2, 0) * logits.log_softmax(1)).sum(1).mean()
