"""A small convolutional network."""

import itertools
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from sslrun.config.types import PositiveInt


def smallcnn(image_size: int, *, widths: Annotated[list[PositiveInt], Field(min_length=1)]) -> nn.Module:
    """Blocks of conv3x3, batch norm, ReLU and 2 x 2 max-pool, then a global average."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise([3, *widths]):
        layers += [
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.MaxPool2d(2, ceil_mode=True),  # ceil_mode: tiles of 12 or 14 px survive four of them
            nn.ReLU(inplace=True),  # after the pool it gives the same and has a quarter of the work
        ]
    net: Any = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.feature_dim, net.stages = widths[-1], list(net)[3::4]
    return net
