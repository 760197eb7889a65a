"""Masked image modeling for convolutional networks (SparK, Tian et al. 2023)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslrun.augment import Augment, Rng, moved
from sslrun.base.processes import mean_of_share
from sslrun.config.types import Node, PositiveInt
from sslrun.models.encoder import Encoder, example_maps
from sslrun.tasks.decoder import Decoder
from sslrun.tasks.masks import MaskRatio, random_masks, refuse_other_norms, resized, visible_only
from sslrun.tasks.reconstruction import destandardized, standardized
from sslrun.tasks.task import Task

FINE_FROM = 64  # px: smaller images have 4 x 4 cells, larger ones 8 x 8


class Masked(Task):
    """A light decoder predicts masked cells of the image from feature maps of the visible ones.

    The encoder is sparse: masked areas never enter a convolution or a batch statistic, so it sees neither borders of
    masks nor another distribution than later. Other layers, such as attention, group norm or squeeze-and-excitation,
    see zeros there. Loss: squared error on masked cells alone, of pixels standardized in
    each cell and channel (as He et al. 2022 do over all channels of a patch); at most 1 for the mean color of each
    cell, and less where cells are flat. It needs many steps, and large images, to be worth it.

    Args:
        augment: draws the view.
        mask_ratio: fraction of the cells that is masked.
        grid: cells per side; `auto` is 8 from 64 px on, else 4.
        levels: number of maps that the decoder sees, the last ones.
        width: channels of the decoder's first block.
    """

    def __init__(
        self,
        encoder: Encoder,
        image_size: int,
        *,
        augment: Node | Augment,
        mask_ratio: MaskRatio,
        grid: PositiveInt | Literal["auto"],
        levels: PositiveInt,
        width: PositiveInt,
    ) -> None:
        super().__init__()
        assert callable(augment)
        self.encoder, self.augment, self.mask_ratio = encoder, augment, mask_ratio
        self.grid = (8 if image_size >= FINE_FROM else 4) if isinstance(grid, str) else grid
        if not 2 <= self.grid <= image_size // 2:
            raise ValueError(
                f"pretext.grid must be 2 to {image_size // 2} for images of {image_size} px, found {self.grid}"
            )
        refuse_other_norms(encoder.backbone)
        maps = example_maps(encoder.backbone, image_size)
        levels = min(levels, len(maps))
        self.sides = [m.shape[-1] for m in maps[-levels:]]
        self.tokens = nn.ParameterList([nn.Parameter(torch.zeros(c)) for c in encoder.channels[-levels:]])
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, width, 1, bias=False), nn.BatchNorm2d(width)) for c in encoder.channels[-levels:]
        )
        self.decoder = Decoder(width, self.sides[0], image_size, width)

    def views(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Return the view with the masked cells in the mean color."""
        view = self.augment(images, rng)
        visible = self._mask(view, rng)
        return {"visible": torch.where(_at(visible, view), view, self.encoder.mean)}

    def figures(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Return images with masked cells, and with the predicted detail in them, at the true mean and contrast."""
        visible = self._mask(images, rng)
        _, mean, std = self._standardized(images)
        out = destandardized(self.predicted(images, visible).float() * std + mean, self.encoder)
        seen = _at(visible, images)
        return {
            "visible": torch.where(seen, images, self.encoder.mean),
            "predicted detail": torch.where(seen, images, out),
        }

    def predicted(self, images: Tensor, visible: Tensor) -> Tensor:
        """Return the decoder's output, `N x 3 x S x S`, which depends on visible cells alone.

        Args:
            images: `N x 3 x S x S`.
            visible: `N x 1 x grid x grid`, see `random_masks`.
        """
        seen = torch.where(_at(visible, images), images, self.encoder.mean)  # 0 for the backbone
        with visible_only(self.encoder.backbone, visible):
            maps = self.encoder.maps(seen)[-len(self.sides) :]
        x: Tensor | None = None
        for level in reversed(range(len(maps))):
            at = resized(visible, *maps[level].shape[2:]).bool()
            filled = self.lateral[level](
                torch.where(at, maps[level], self.tokens[level].to(maps[level].dtype)[:, None, None])
            )
            x = filled if x is None else filled + F.interpolate(x, filled.shape[2:])
        out: Tensor = self.decoder(x)
        return out

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        """Return the squared error on masked cells."""
        view = self.augment(batch["images"], rng)
        visible = self._mask(view, rng)
        target, _, _ = self._standardized(view)
        masked = ~_at(visible, view)
        error = (self.predicted(view, visible).float() - target).square() * masked
        return {"loss": error.sum() / (3 * mean_of_share(masked.sum()))}

    def _mask(self, images: Tensor, rng: Rng) -> Tensor:
        return moved(random_masks(len(images), self.grid, self.mask_ratio, rng), images.device)

    def _standardized(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return pixels standardized in each cell, and mean and standard deviation of the cell, at each pixel."""
        x = standardized(images, self.encoder)
        size = x.shape[2:]
        mean = F.interpolate(F.adaptive_avg_pool2d(x, self.grid), size)
        std = F.interpolate(F.adaptive_avg_pool2d((x - mean).square(), self.grid), size).add(1e-2).sqrt()
        return (x - mean) / std, mean, std


def _at(visible: Tensor, images: Tensor) -> Tensor:
    return F.interpolate(visible, images.shape[2:]).bool()
