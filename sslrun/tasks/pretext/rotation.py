"""Rotation: tell by how many quarter turns a picture was turned (Gidaris et al. 2018)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslrun.augment import Augment, Rng
from sslrun.config.types import Node, PositiveInt, Share
from sslrun.models.encoder import Encoder
from sslrun.tasks.task import Task


class Rotation(Task):
    """Rotation prediction; chance is a loss of ln 4 = 1.386 and an accuracy of 0.25.

    Args:
        augment: applied before the turn; the same view is turned into all copies.
        copies: 4 shows every picture in all four turns (the better one, Gidaris et al. table 2), 1 in a random one.
        hidden_dim: width of a hidden layer in the head; null is a linear head.
        dropout: before the last layer of the head.
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
        self.encoder, self.augment, self.copies = encoder, augment, copies
        d = encoder.feature_dim
        hidden = [nn.Linear(d, hidden_dim), nn.ReLU(inplace=True)] if hidden_dim else []
        self.head = nn.Sequential(*hidden, nn.Dropout(dropout), nn.Linear(hidden_dim or d, 4))

    def rotated(self, images: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """Return the turned pictures and their turns: `4N` (all of turn 0, then of 1, ...) or `N` of each."""
        images = self.augment(images, rng)
        if self.copies == 4:
            rotations = torch.arange(4, device=images.device).repeat_interleave(len(images))
            return torch.cat([torch.rot90(images, k, (2, 3)) for k in range(4)]), rotations
        rotations = rng.randint(4, len(images))
        out = images.clone()
        for k in (1, 2, 3):
            # found on the CPU: a GPU need not be waited for
            rows = (rotations == k).nonzero()[:, 0].to(images.device, non_blocking=True)
            out[rows] = torch.rot90(images[rows], k, (2, 3))
        return out, rotations.to(images.device, non_blocking=True)

    def views(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Return the turned copies by their angle, or the one that each picture got."""
        rotated, _ = self.rotated(images, rng)
        if self.copies == 1:
            return {"rotated": rotated}
        return dict(zip(("0°", "90°", "180°", "270°"), rotated.chunk(4), strict=True))

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        """Return the cross-entropy and the accuracy of the predicted turns."""
        images, rotations = self.rotated(batch["images"], rng)
        logits = self.head(self.encoder(images)).float()
        return {
            "loss": F.cross_entropy(logits, rotations),
            "pretext_accuracy": (logits.argmax(1) == rotations).float().mean(),
        }
