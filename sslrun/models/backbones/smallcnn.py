"""A small convolutional network."""

import itertools
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from sslrun.config.types import PositiveInt


def smallcnn(image_size: int, *, widths: Annotated[list[PositiveInt], Field(min_length=1)]) -> nn.Module:
    """Blocks of conv3x3, batch norm, ReLU and 2 x 2 max-pool."""
    return SmallCNN(widths)


class SmallCNN(nn.Sequential):
    """Blocks of conv3x3, batch norm, 2 x 2 max-pool and ReLU; returns the map of each.

    Args:
        channels: of the blocks.
    """

    def __init__(self, channels: list[int]) -> None:
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise([3, *channels]):
            layers += [
                nn.Conv2d(before, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.MaxPool2d(2, ceil_mode=True),  # ceil_mode: tiles of 12 or 14 px survive four of them
                nn.ReLU(inplace=True),  # after the pool it gives the same and has a quarter of the work
            ]
        super().__init__(*layers)
        self.channels = list(channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps."""
        maps = []
        for layer in self:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                maps.append(x)
        return maps
