"""ResNet-18."""

from typing import Any

from torch import nn
from torchvision import models

from sslrun.models.backbones.stem import Stem, is_small


def resnet18(image_size: int, *, stem: Stem) -> nn.Module:
    """ResNet-18 (He et al. 2016); the small stem is a 3 x 3 convolution of stride 1 without max-pool.

    `imagenet_small` has the 7 x 7 convolution of the ImageNet weights, at stride 1 and without max-pool.
    """
    net: Any = models.resnet18()
    net.feature_dim, net.fc = net.fc.in_features, nn.Identity()
    net.stages = [net.layer1, net.layer2, net.layer3, net.layer4]
    net.imagenet = models.ResNet18_Weights.IMAGENET1K_V1
    if is_small(stem, image_size):
        kernel = 7 if stem == "imagenet_small" else 3
        net.conv1, net.maxpool = nn.Conv2d(3, 64, kernel, padding=kernel // 2, bias=False), nn.Identity()
    return net
