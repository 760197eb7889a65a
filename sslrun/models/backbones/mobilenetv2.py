"""MobileNetV2."""

from torch import Tensor, nn
from torchvision import models

from sslrun.models.backbones.stem import SMALL_UP_TO, Stem, is_small

MAPS = (3, 6, 13, 18)  # indices in `features`: the last layers at 1/4, 1/8 and 1/16 of the size, and the last of all


def mobilenetv2(image_size: int, *, stem: Stem) -> nn.Module:
    """MobileNetV2 (Sandler et al. 2018).

    The small stem has stride 1 in the first convolution, and up to 32 px also in the first bottleneck of stride 2.
    """
    net = MobileNetV2()
    if is_small(stem, image_size):
        net.features[0][0].stride = (1, 1)
        if image_size <= SMALL_UP_TO // 2:
            net.features[2].conv[1][0].stride = (1, 1)
    return net


class MobileNetV2(models.MobileNetV2):
    """torchvision's network without the classifier; returns four feature maps."""

    imagenet = models.MobileNet_V2_Weights.IMAGENET1K_V1

    def __init__(self) -> None:
        super().__init__()
        del self.classifier
        self.channels: list[int] = [self.features[i].out_channels for i in MAPS]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps, fine to coarse."""
        maps = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in MAPS:
                maps.append(x)
        return maps
