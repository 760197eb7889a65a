"""Jigsaw: tell in which order the tiles of a picture were laid (Noroozi & Favaro 2016)."""

import functools
import itertools
import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslrun.augment import Augment, Rng
from sslrun.config.types import Node, PositiveInt, Share
from sslrun.models.encoder import Encoder
from sslrun.tasks.task import Task

GRID_3_FROM = 64  # px: below, nine tiles would be too small to show anything
MAX_PERMUTATIONS = 1000  # the choice of a set takes time in proportion


class Jigsaw(Task):
    """Jigsaw puzzles; chance is a loss of ln(permutations).

    Against shortcuts each tile is cut at a random place in its cell, which leaves a gap, and normalised on its own.

    Args:
        augment: applied to the picture before it is cut.
        grid: tiles a side; `auto` is 3 from 64 px, else 2.
        permutations: size of the set; `auto` is all 24 orders of 4 tiles, 100 orders of 9.
        gap: part of a cell's side that is given up for the gap.
        normalize_tiles: bring each tile to the pictures' mean and spread, so that brightness does not give it away.
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
                f"tiles of {self.tile} px show nothing: use larger pictures, a coarser grid or a smaller gap"
            )
        self.register_buffer("permutations", torch.from_numpy(permutation_set(tiles, count)), persistent=False)
        self.head = nn.Sequential(
            nn.Linear(tiles * encoder.feature_dim, hidden_dim, bias=False),
            nn.BatchNorm1d(hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, count),
        )

    def shuffled(self, images: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """Return the tiles in their new order, `N x tiles x 3 x t x t`, and which order of the set it is, `N`."""
        which = rng.randint(len(self.permutations), len(images)).to(images.device, non_blocking=True)  # type: ignore[arg-type]
        permutations: Tensor = self.permutations[which]  # type: ignore[index]
        tiles = cut(self.augment(images, rng), permutations, self.grid, self.cell, self.tile, rng)
        if self.normalize_tiles:
            tiles = tiles - tiles.mean((2, 3, 4), keepdim=True)
            std = tiles.square().mean((2, 3, 4), keepdim=True).sqrt()
            tiles = torch.addcmul(self.encoder.mean.mean(), tiles, self.encoder.std.mean() / (std + 0.05))
        return tiles, which

    def views(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Return the shuffled tiles, laid out as a picture with the gaps between them."""
        tiles, _ = self.shuffled(images, rng)
        edge = self.cell - self.tile
        rows = [torch.cat([F.pad(t, (0, edge, 0, edge), value=0.5) for t in r.unbind(1)], 3)
                for r in tiles.chunk(self.grid, 1)]  # fmt: skip
        laid = torch.cat(rows, 2).clamp(0, 1)
        rest = images.shape[-1] - laid.shape[-1]
        return {"shuffled": F.pad(laid, (0, rest, 0, rest), value=0.5)}

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        """Return the cross-entropy and the accuracy of the predicted orders."""
        tiles, which = self.shuffled(batch["images"], rng)
        features = self.encoder(tiles.flatten(0, 1)).view(len(tiles), -1)
        logits = self.head(features).float()
        return {
            "loss": F.cross_entropy(logits, which),
            "pretext_accuracy": (logits.argmax(1) == which).float().mean(),
        }


def cut(images: Tensor, permutations: Tensor, grid: int, cell: int, tile: int, rng: Rng) -> Tensor:
    """Cut one tile out of each cell of a `grid x grid` raster, at a random place of its own.

    Args:
        images: `N x C x S x S` with S of at least `grid * cell`.
        permutations: `N x grid^2`, the cells, counted row by row, in the order in which their tiles come.

    Returns:
        `N x grid^2 x C x tile x tile`.
    """
    device = images.device
    offsets = rng.randint(cell - tile + 1, 2, *permutations.shape, dim=1).to(device, non_blocking=True)
    inside = torch.arange(tile, device=device)
    rows = (permutations // grid * cell + offsets[0])[..., None] + inside
    columns = (permutations % grid * cell + offsets[1])[..., None] + inside
    places = (rows[..., :, None] * images.shape[-1] + columns[..., None, :]).view(len(images), 1, -1)
    pixels = images.flatten(2).gather(2, places.expand(-1, images.shape[1], -1))
    return pixels.view(*images.shape[:2], -1, tile, tile).transpose(1, 2)


@functools.cache
def permutation_set(tiles: int, count: int) -> np.ndarray:
    """Choose orders of the tiles that differ in as many places as possible (Noroozi & Favaro 2016, algorithm 1).

    Greedy: each new order has the largest minimal Hamming distance to those chosen, then the largest mean.

    Returns:
        `count x tiles`, int64; the first is the identity.

    Raises:
        ValueError: there are not so many orders.
    """
    most = min(math.factorial(tiles), MAX_PERMUTATIONS)
    if not 2 <= count <= most:
        raise ValueError(f"permutations must be 2 to {most} for {tiles} tiles, found {count}")
    every = np.array(list(itertools.permutations(range(tiles))), dtype=np.int8)
    chosen = [0]
    least = np.full(len(every), tiles, dtype=np.int32)
    total = np.zeros(len(every), dtype=np.int32)
    while len(chosen) < count:
        distance = (every != every[chosen[-1]]).sum(1, dtype=np.int32)
        least = np.minimum(least, distance)
        total += distance
        chosen.append(int(np.argmax(least.astype(np.int64) * (tiles * count + 1) + total)))
    return every[chosen].astype(np.int64)
