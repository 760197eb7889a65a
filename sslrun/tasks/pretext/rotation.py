"""Rotation: predict the rotation of an image by 0, 90, 180 or 270 degrees (Gidaris et al. 2018)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslrun.augment import Augment, Rng
from sslrun.config.types import Node, PositiveInt, Share
from sslrun.device import in_float32
from sslrun.models.encoder import Encoder
from sslrun.tasks.heads import dropped
from sslrun.tasks.task import Task


class Rotation(Task):
    """Rotation prediction; at chance level the loss is ln 4 = 1.386 and the accuracy 0.25.

    Args:
        augment: applied before the rotation; all copies are rotations of the same view.
        copies: 4 uses all four rotations of every image (better, Gidaris et al. table 2), 1 a random one.
        hidden_dim: width of the head's hidden layer; null is a linear head.
        dropout: rate before the head's last layer.
    """

    def __init__(
        self,
        encoder: Encoder,
        image_size: int,
        *,
        augment: Node | Augment,
        copies: Literal[1, 4],
        hidden_dim: PositiveInt | None,
        dropout: Share,
    ) -> None:
        super().__init__()
        assert callable(augment)
        self.encoder, self.augment, self.copies, self.dropout = encoder, augment, copies, dropout
        d = encoder.feature_dim
        hidden = [nn.Linear(d, hidden_dim), nn.ReLU(inplace=True)] if hidden_dim else []
        self.hidden, self.head = nn.Sequential(*hidden), nn.Linear(hidden_dim or d, 4)

    def rotated(self, images: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """Return `4N` rotated images (all by 0 degrees, then all by 90, ...) or `N`, and their rotations, 0 to 3."""
        images = self.augment(images, rng)
        if self.copies == 4:
            rotations = torch.arange(4, device=images.device).repeat_interleave(len(images))
            return torch.cat([torch.rot90(images, k, (2, 3)) for k in range(4)]), rotations
        rotations = rng.randint(4, len(images))
        out = images.clone()
        for k in (1, 2, 3):
            # on the CPU, to avoid a synchronization with the GPU
            rows = (rotations == k).nonzero()[:, 0].to(images.device, non_blocking=True)
            out[rows] = torch.rot90(images[rows], k, (2, 3))
        return out, rotations.to(images.device, non_blocking=True)

    def views(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Return the four rotated copies by angle, or the one randomly rotated copy."""
        rotated, _ = self.rotated(images, rng)
        if self.copies == 1:
            return {"rotated": rotated}
        return dict(zip(("0°", "90°", "180°", "270°"), rotated.chunk(4), strict=True))

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        """Return the cross-entropy and the accuracy of the predicted rotations."""
        images, rotations = self.rotated(batch["images"], rng)
        hidden = in_float32(self.hidden, self.encoder(images))
        if self.training and self.dropout:
            hidden = dropped(hidden, self.dropout, rng, self.copies)
        logits = in_float32(self.head, hidden)
        return {
            "loss": F.cross_entropy(logits, rotations),
            "pretext_accuracy": (logits.argmax(1) == rotations).float().mean(),
        }
