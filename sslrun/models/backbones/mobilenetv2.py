"""MobileNetV2."""

from typing import Any

from torch import nn
from torchvision import models

from sslrun.models.backbones.stem import SMALL_UP_TO, Stem, is_small


def mobilenetv2(image_size: int, *, stem: Stem) -> nn.Module:
    """MobileNetV2 (Sandler et al. 2018); the small stem keeps the resolution in the first convolution, and up to
    32 px in the first bottleneck that halves it, too.
    """
    full: Any = models.mobilenet_v2()
    if is_small(stem, image_size):
        full.features[0][0].stride = (1, 1)
        if image_size <= SMALL_UP_TO // 2:
            full.features[2].conv[1][0].stride = (1, 1)
    net: Any = nn.Sequential(full.features, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.feature_dim, net.stages = full.last_channel, [full.features[i] for i in (3, 6, 13, 18)]
    net.imagenet = models.MobileNet_V2_Weights.IMAGENET1K_V1
    return net
