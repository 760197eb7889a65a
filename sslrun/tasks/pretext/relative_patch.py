"""Relative patch location: where is one tile of an image as seen from another? (Doersch et al. 2015)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslrun.augment import Augment, Rng
from sslrun.config.types import Node, PositiveInt, Share
from sslrun.device import in_float32
from sslrun.models.encoder import Encoder
from sslrun.tasks.task import Task
from sslrun.tasks.tiles import Tiles

OFFSETS = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]


class RelativePatch(Task):
    """Predict for each pair of adjacent tiles in which of 8 directions the second lies from the first.

    The directions have equal weights: some have more pairs. At chance level the loss is ln 8 = 2.079. The paper takes
    one pair an image, here all pairs of its tiles share one pass through the encoder. Images without an orientation
    (textures, cells) can be solved by the direction of lines and by chromatic aberration alone; gaps and color jitter
    are against that.

    Args:
        augment: applied to the image before it is cut into tiles.
        grid: tiles per side; `auto` is 3 from 64 px on, else 2.
        gap, normalize_tiles: see `Tiles`.
        hidden_dim: width of the head's hidden layer.
    """

    cells: Tensor
    pairs: Tensor
    directions: Tensor
    weights: Tensor

    def __init__(
        self,
        encoder: Encoder,
        image_size: int,
        *,
        augment: Node | Augment,
        grid: Literal["auto", 2, 3],
        gap: Share,
        normalize_tiles: bool,
        hidden_dim: PositiveInt,
    ) -> None:
        super().__init__()
        assert callable(augment)
        self.encoder, self.augment = encoder, augment
        self.tiles = Tiles(encoder, image_size, grid, gap, normalize_tiles)
        pairs, directions = adjacent(self.tiles.grid)
        self.register_buffer("cells", torch.arange(self.tiles.grid**2), persistent=False)
        self.register_buffer("pairs", pairs, persistent=False)
        self.register_buffer("directions", directions, persistent=False)
        self.register_buffer("weights", 1 / torch.bincount(directions).float(), persistent=False)
        # The first layer on a pair's features, as a sum of two: each tile passes once, not once for each of its pairs.
        self.first = nn.Linear(encoder.feature_dim, hidden_dim, bias=False)
        self.second = nn.Linear(encoder.feature_dim, hidden_dim, bias=False)
        self.head = nn.Sequential(
            nn.BatchNorm1d(hidden_dim), nn.ReLU(inplace=True), nn.Linear(hidden_dim, len(OFFSETS))
        )

    def views(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Return the first two tiles of each image, enlarged to its size."""
        tiles = self._tiles(images, rng)
        return {f"tile {i + 1}": F.interpolate(tiles[:, i], size=images.shape[2:]).clamp(0, 1) for i in (0, 1)}

    def _tiles(self, images: Tensor, rng: Rng) -> Tensor:
        return self.tiles.cut(self.augment(images, rng), self.cells.expand(len(images), -1), rng)

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        """Return the cross-entropy and the accuracy, both with equal weights of the directions."""
        tiles = self._tiles(batch["images"], rng)
        features = self.encoder(tiles.flatten(0, 1)).unflatten(0, tiles.shape[:2])
        hidden = [
            in_float32(layer, features).index_select(1, tiles_of_pairs)
            for layer, tiles_of_pairs in ((self.first, self.pairs[:, 0]), (self.second, self.pairs[:, 1]))
        ]
        logits = in_float32(self.head, (hidden[0] + hidden[1]).flatten(0, 1))
        directions = self.directions.repeat(len(tiles))
        hits = (logits.detach().argmax(1) == directions) * self.weights[directions]
        return {
            "loss": F.cross_entropy(logits, directions, self.weights),
            "pretext_accuracy": hits.sum() / self.weights[directions].sum(),
        }


def adjacent(grid: int) -> tuple[Tensor, Tensor]:
    """Return all ordered pairs of adjacent cells, `P x 2`, and the direction of the second from the first, P."""
    pairs = [
        (y * grid + x, (y + dy) * grid + x + dx, k)
        for y in range(grid)
        for x in range(grid)
        for k, (dy, dx) in enumerate(OFFSETS)
        if 0 <= y + dy < grid and 0 <= x + dx < grid
    ]
    table = torch.tensor(pairs)
    return table[:, :2], table[:, 2]
