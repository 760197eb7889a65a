"""A small convolutional network."""

import itertools
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from sslrun.config.types import PositiveInt


def smallcnn(image_size: int, *, widths: Annotated[list[PositiveInt], Field(min_length=1)]) -> nn.Module:
    """Blocks of 3 x 3 convolution, batch norm, ReLU and 2 x 2 max-pooling."""
    return SmallCNN(widths)


class SmallCNN(nn.Sequential):
    """Blocks of 3 x 3 convolution, batch norm, 2 x 2 max-pooling and ReLU; returns the feature map of each block.

    Args:
        channels: output channels of each block.
    """

    def __init__(self, channels: list[int]) -> None:
        layers: list[nn.Module] = []
        for in_channels, out_channels in itertools.pairwise([3, *channels]):
            layers += [
                nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.MaxPool2d(2, ceil_mode=True),  # ceil_mode: tiles of 12 or 14 px can be pooled four times
                nn.ReLU(inplace=True),  # after pooling: the same result at a quarter of the cost
            ]
        super().__init__(*layers)
        self.channels = list(channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps, fine to coarse."""
        maps = []
        for layer in self:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                maps.append(x)
        return maps
