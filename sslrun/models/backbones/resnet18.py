"""ResNet-18."""

from torch import Tensor, nn
from torchvision import models

from sslrun.models.backbones.stem import Stem, is_small


def resnet18(image_size: int, *, stem: Stem) -> nn.Module:
    """ResNet-18 (He et al. 2016); the small stem is a 3 x 3 convolution of stride 1 without max-pooling.

    `imagenet_small` has the 7 x 7 convolution of the ImageNet weights, with stride 1 and without max-pooling.
    """
    net = ResNet18()
    if is_small(stem, image_size):
        kernel = 7 if stem == "imagenet_small" else 3
        net.conv1, net.maxpool = nn.Conv2d(3, 64, kernel, padding=kernel // 2, bias=False), nn.Identity()
    return net


class ResNet18(models.ResNet):
    """torchvision's network without the classifier; returns the feature maps of its four stages."""

    imagenet = models.ResNet18_Weights.IMAGENET1K_V1

    def __init__(self) -> None:
        super().__init__(models.resnet.BasicBlock, [2, 2, 2, 2])
        del self.avgpool, self.fc
        self.channels = [64, 128, 256, 512]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps, fine to coarse."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            maps.append(x)
        return maps
