"""MobileNetV2."""

from torch import Tensor, nn
from torchvision import models

from sslrun.models.backbones.stem import SMALL_UP_TO, Stem, is_small

MAPS = (3, 6, 13, 18)  # of `features`: the last layers at 1/4, 1/8 and 1/16 of the size, and the end


def mobilenetv2(image_size: int, *, stem: Stem) -> nn.Module:
    """MobileNetV2 (Sandler et al. 2018); the small stem keeps the resolution in the first convolution, and up to
    32 px in the first bottleneck that halves it, too.
    """
    net = MobileNetV2()
    if is_small(stem, image_size):
        net.features[0][0].stride = (1, 1)
        if image_size <= SMALL_UP_TO // 2:
            net.features[2].conv[1][0].stride = (1, 1)
    return net


class MobileNetV2(models.MobileNetV2):
    """torchvision's network without its classifier, which returns four of its maps."""

    imagenet = models.MobileNet_V2_Weights.IMAGENET1K_V1

    def __init__(self) -> None:
        super().__init__()
        del self.classifier
        self.channels: list[int] = [self.features[i].out_channels for i in MAPS]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps."""
        maps = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in MAPS:
                maps.append(x)
        return maps
