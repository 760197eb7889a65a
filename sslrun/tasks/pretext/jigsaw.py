"""Jigsaw: predict the permutation of an image's tiles (Noroozi & Favaro 2016)."""

import functools
import itertools
import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslrun.augment import Augment, Rng
from sslrun.base.errors import UserError
from sslrun.config.types import Node, PositiveInt, Share
from sslrun.device import in_float32
from sslrun.models.encoder import Encoder, example_maps
from sslrun.tasks.task import Task

GRID_3_FROM = 64  # px: in smaller images, nine tiles would be too small
MAX_PERMUTATIONS = 1000  # the time to choose the set is proportional to its size


class Jigsaw(Task):
    """Predict the permutation of shuffled tiles; the loss at chance level is ln(permutations).

    To prevent shortcuts, each tile is cropped at a random position in its cell, which leaves a gap between tiles, and
    normalized on its own.

    Args:
        augment: applied to the image before it is cut into tiles.
        grid: tiles per side; `auto` is 3 from 64 px on, else 2.
        permutations: size of the set; `auto` is all 24 permutations of 4 tiles, or 100 permutations of 9.
        gap: width of the gap as a fraction of a cell's side.
        normalize_tiles: normalize each tile to the mean and standard deviation of the data set, so that brightness and
            contrast do not reveal its neighbors.
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
        self.encoder, self.augment, self.normalize_tiles = encoder, augment, normalize_tiles
        self.grid = (3 if image_size >= GRID_3_FROM else 2) if grid == "auto" else grid
        tiles = self.grid**2
        count = (24 if self.grid == 2 else 100) if permutations == "auto" else permutations
        self.cell = image_size // self.grid
        self.tile = self.cell - round(gap * self.cell)
        if self.tile < 4:
            raise ValueError(
                f"tiles of {self.tile} px are too small: use larger images, a coarser grid or a smaller gap"
            )
        try:
            example_maps(encoder.backbone, self.tile)
        except UserError:
            raise ValueError(
                f"tiles of {self.tile} px are too small for this backbone: use larger images, or a coarser grid"
            ) from None
        self.register_buffer("permutations", torch.from_numpy(permutation_set(tiles, count)), persistent=False)
        self.head = nn.Sequential(
            nn.Linear(tiles * encoder.feature_dim, hidden_dim, bias=False),
            nn.BatchNorm1d(hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, count),
        )

    def shuffled(self, images: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """Return the shuffled tiles, `N x tiles x 3 x t x t`, and the index of the permutation in the set, `N`."""
        which = rng.randint(len(self.permutations), len(images)).to(images.device, non_blocking=True)  # type: ignore[arg-type]
        permutations: Tensor = self.permutations[which]  # type: ignore[index]
        tiles = cut(self.augment(images, rng), permutations, self.grid, self.cell, self.tile, rng)
        if self.normalize_tiles:
            tiles = tiles - tiles.mean((2, 3, 4), keepdim=True)
            std = tiles.square().mean((2, 3, 4), keepdim=True).sqrt()
            tiles = torch.addcmul(self.encoder.mean.mean(), tiles, self.encoder.std.mean() / (std + 0.05))
        return tiles, which

    def views(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Return the shuffled tiles, arranged as one image with gaps between them."""
        tiles, _ = self.shuffled(images, rng)
        gap = self.cell - self.tile
        rows = [torch.cat([F.pad(t, (0, gap, 0, gap), value=0.5) for t in r.unbind(1)], 3)
                for r in tiles.chunk(self.grid, 1)]  # fmt: skip
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


def cut(images: Tensor, permutations: Tensor, grid: int, cell: int, tile: int, rng: Rng) -> Tensor:
    """Crop one tile from each cell of a `grid x grid` raster, at an independent random position.

    Args:
        images: `N x C x S x S` with S of at least `grid * cell`.
        permutations: `N x grid^2`, the cell of each returned tile; cells are numbered row by row.

    Returns:
        `N x grid^2 x C x tile x tile`.
    """
    device = images.device
    offsets = rng.randint(cell - tile + 1, 2, *permutations.shape, dim=1).to(device, non_blocking=True)
    inside = torch.arange(tile, device=device)
    rows = (permutations // grid * cell + offsets[0])[..., None] + inside
    columns = (permutations % grid * cell + offsets[1])[..., None] + inside
    positions = (rows[..., :, None] * images.shape[-1] + columns[..., None, :]).view(len(images), 1, -1)
    pixels = images.flatten(2).gather(2, positions.expand(-1, images.shape[1], -1))
    return pixels.view(*images.shape[:2], -1, tile, tile).transpose(1, 2)


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
        raise ValueError(f"permutations must be 2 to {maximum} for {tiles} tiles, found {count}")
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
