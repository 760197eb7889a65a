"""The network of the rotation recipe, as a tutorial writes it."""

from torch import nn


def smallcnn() -> nn.Module:
    """Four blocks of conv3x3, batch norm, ReLU and max-pool, then a global average: 512 features."""
    layers: list[nn.Module] = []
    for before, after in ((3, 64), (64, 128), (128, 256), (256, 512)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
