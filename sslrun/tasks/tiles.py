"""Tiles of images, for tasks on their positions."""

import itertools
import math

import torch
from torch import Tensor

from sslrun.augment import Rng, moved
from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.models.encoder import Encoder, example_maps

GRID_3_FROM = 64  # px: in smaller images, nine tiles would be too small
SMALLEST = 4  # px


class Tiles:
    """A grid of cells, from each of which a smaller tile is cropped at a random position.

    Args:
        encoder: the tiles are to be large enough for it.
        image_size: in px.
        grid: cells per side; `auto` is 3 from 64 px on if the network takes tiles of that size, else 2.
        gap: width of the gap between tiles as a fraction of a cell's side.
        normalize: normalize each tile to the mean and standard deviation of the data set, so that brightness and
            contrast do not reveal its neighbors.

    Raises:
        ValueError: the tiles are too small.
    """

    def __init__(self, encoder: Encoder, image_size: int, grid: int | str, gap: float, normalize: bool) -> None:
        self.encoder, self.normalize = [encoder], normalize  # in a list: not a second path to its weights
        grids = ([3, 2] if image_size >= GRID_3_FROM else [2]) if isinstance(grid, str) else [grid]
        for self.grid in grids:
            self.cell = image_size // self.grid
            self.side = side_of(self.cell, gap)
            if self.side < SMALLEST:
                raise ValueError(_too_small(image_size, self.grid, gap))
            try:
                example_maps(encoder.backbone, self.side)
            except UserError as error:
                if self.grid == grids[-1]:
                    raise ValueError(
                        f"tiles of {self.side} px do not fit this backbone ({error}): use a larger dataset.image_size, "
                        "a smaller pretext.grid or another backbone"
                    ) from None
                log.info("pretext.grid=auto is 2: this backbone takes no tiles of %d px", self.side)
            else:
                break

    def cut(self, images: Tensor, cells: Tensor, rng: Rng) -> Tensor:
        """Return the tiles of some cells.

        Args:
            images: `N x 3 x S x S`.
            cells: `N x T`, the cell of each tile; cells are numbered row by row.

        Returns:
            `N x T x 3 x side x side`.
        """
        tiles = cut(images, cells, self.grid, self.cell, self.side, rng)
        if self.normalize:
            mean, std = self.encoder[0].mean.mean(), self.encoder[0].std.mean()
            tiles = tiles - tiles.mean((2, 3, 4), keepdim=True)
            own = tiles.square().mean((2, 3, 4), keepdim=True).sqrt()
            tiles = torch.addcmul(mean, tiles, std / (own + 0.05))
        return tiles


def side_of(cell: int, gap: float) -> int:
    """Return the side in px of the tile in a cell."""
    return cell - round(gap * cell)


def _too_small(image_size: int, grid: int, gap: float) -> str:
    """Return the message for tiles that are too small, with the nearest settings that fit."""
    cell = next(c for c in itertools.count(math.ceil((SMALLEST - 0.5) / (1 - gap))) if side_of(c, gap) >= SMALLEST)
    settings = [f"dataset.image_size={cell * grid}"]
    if image_size // grid >= SMALLEST:
        settings.append(f"pretext.gap={int((1 - SMALLEST / (image_size // grid)) * 100) / 100:g}")
    if grid == 3 and side_of(image_size // 2, gap) >= SMALLEST:
        settings.append("pretext.grid=2")
    return (
        f"tiles of {side_of(image_size // grid, gap)} px are too small, at least {SMALLEST} px are needed: use "
        f"{' or '.join(settings)}"
    )


def cut(images: Tensor, cells: Tensor, grid: int, cell: int, tile: int, rng: Rng) -> Tensor:
    """Crop one tile from each of some cells of a `grid x grid` raster, at an independent random position.

    Args:
        images: `N x C x S x S` with S of at least `grid * cell`.
        cells: `N x T`, the cell of each returned tile; cells are numbered row by row.

    Returns:
        `N x T x C x tile x tile`.
    """
    device = images.device
    offsets = moved(rng.randint(cell - tile + 1, 2, *cells.shape, dim=1), device)
    inside = torch.arange(tile, device=device)
    rows = (cells // grid * cell + offsets[0])[..., None] + inside
    columns = (cells % grid * cell + offsets[1])[..., None] + inside
    positions = (rows[..., :, None] * images.shape[-1] + columns[..., None, :]).view(len(images), 1, -1)
    pixels = images.flatten(2).gather(2, positions.expand(-1, images.shape[1], -1))
    return pixels.view(*images.shape[:2], -1, tile, tile).transpose(1, 2)
