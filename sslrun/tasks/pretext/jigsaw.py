"""Jigsaw: predict the permutation of an image's tiles (Noroozi & Favaro 2016)."""

import functools
import itertools
import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslrun.augment import Augment, Rng
from sslrun.config.types import Node, PositiveInt, Share
from sslrun.device import in_float32
from sslrun.models.encoder import Encoder
from sslrun.tasks.heads import mlp
from sslrun.tasks.task import Task
from sslrun.tasks.tiles import Tiles

MAX_PERMUTATIONS = 1000  # the time to choose the set is proportional to its size


class Jigsaw(Task):
    """Predict the permutation of shuffled tiles; the loss at chance level is ln(permutations).

    To prevent shortcuts, each tile is cropped at a random position in its cell, which leaves a gap between tiles, and
    normalized on its own.

    Args:
        augment: applied to the image before it is cut into tiles.
        grid: tiles per side; `auto` is 3 from 64 px on, else 2.
        permutations: size of the set; `auto` is all 24 permutations of 4 tiles, or 100 permutations of 9.
        gap, normalize_tiles: see `Tiles`.
        hidden_dim: width of the head's hidden layer.
    """

    def __init__(
        self,
        encoder: Encoder,
        image_size: int,
        *,
        augment: Node | Augment,
        grid: Literal["auto", 2, 3],
        permutations: PositiveInt | Literal["auto"],
        gap: Share,
        normalize_tiles: bool,
        hidden_dim: PositiveInt,
    ) -> None:
        super().__init__()
        assert callable(augment)
        self.encoder, self.augment = encoder, augment
        self.tiles = Tiles(encoder, image_size, grid, gap, normalize_tiles)
        tiles = self.tiles.grid**2
        count = (24 if tiles == 4 else 100) if permutations == "auto" else permutations
        self.register_buffer("permutations", torch.from_numpy(permutation_set(tiles, count)), persistent=False)
        self.head = mlp(tiles * encoder.feature_dim, hidden_dim, count)

    def shuffled(self, images: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """Return the shuffled tiles, `N x tiles x 3 x t x t`, and the index of the permutation in the set, `N`."""
        which = rng.randint(len(self.permutations), len(images)).to(images.device, non_blocking=True)  # type: ignore[arg-type]
        permutations: Tensor = self.permutations[which]  # type: ignore[index]
        return self.tiles.cut(self.augment(images, rng), permutations, rng), which

    def views(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Return the shuffled tiles, arranged as one image with gaps between them."""
        tiles, _ = self.shuffled(images, rng)
        gap = self.tiles.cell - self.tiles.side
        rows = [torch.cat([F.pad(t, (0, gap, 0, gap), value=0.5) for t in r.unbind(1)], 3)
                for r in tiles.chunk(self.tiles.grid, 1)]  # fmt: skip
        mosaic = torch.cat(rows, 2).clamp(0, 1)
        rest = images.shape[-1] - mosaic.shape[-1]
        return {"shuffled": F.pad(mosaic, (0, rest, 0, rest), value=0.5)}

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        """Return the cross-entropy and the accuracy of the predicted permutations."""
        tiles, which = self.shuffled(batch["images"], rng)
        features = self.encoder(tiles.flatten(0, 1)).view(len(tiles), -1)
        logits = in_float32(self.head, features)
        return {
            "loss": F.cross_entropy(logits, which),
            "pretext_accuracy": (logits.argmax(1) == which).float().mean(),
        }


@functools.cache
def permutation_set(tiles: int, count: int) -> np.ndarray:
    """Choose permutations of tiles with large Hamming distances (Noroozi & Favaro 2016, algorithm 1).

    Greedy: each new permutation maximizes the minimal distance to those already chosen; ties are broken by the largest
    mean distance.

    Returns:
        `count x tiles`, int64; the first is the identity.

    Raises:
        ValueError: there are not as many permutations, or more than 1,000 are requested.
    """
    maximum = min(math.factorial(tiles), MAX_PERMUTATIONS)
    if not 2 <= count <= maximum:
        raise ValueError(f"pretext.permutations must be 2 to {maximum} for {tiles} tiles, found {count}")
    candidates = np.array(list(itertools.permutations(range(tiles))), dtype=np.int8)
    chosen = [0]
    minimum = np.full(len(candidates), tiles, dtype=np.int32)
    total = np.zeros(len(candidates), dtype=np.int32)
    while len(chosen) < count:
        distance = (candidates != candidates[chosen[-1]]).sum(1, dtype=np.int32)
        minimum = np.minimum(minimum, distance)
        total += distance
        chosen.append(int(np.argmax(minimum.astype(np.int64) * (tiles * count + 1) + total)))
    return candidates[chosen].astype(np.int64)
