"""Decoders from feature maps to images."""

import torch
from torch import Tensor, nn

SMALLEST = 16  # channels


class Decoder(nn.Module):
    """Convolutions that double the side of a feature map until it is at least that of the output, then crop it.

    Each block is nearest-neighbor upsampling by 2, a 3 x 3 convolution, batch norm and ReLU, and halves the channels;
    the last one is a convolution and a pixel shuffle (Shi et al. 2016), which costs a quarter of a convolution at full
    size, and begins with equal weights for the pixels of a square, without a checkerboard (Aitken et al. 2017).
    The output is cropped at the right and the bottom, since the positions of strided layers count from the top left.

    Args:
        channels: of the map.
        side: of the map, in px.
        out_side: of the output, in px.
        width: channels of the first block.
        out_channels: of the output.
    """

    def __init__(self, channels: int, side: int, out_side: int, width: int, out_channels: int = 3) -> None:
        super().__init__()
        self.out_side = out_side
        reduction = max(1, side // out_side)
        layers: list[nn.Module] = [nn.AvgPool2d(reduction)] if reduction > 1 else []
        layers += [nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        while side * 2 < out_side:
            narrower = max(SMALLEST, width // 2)
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, narrower, 3, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(narrower), nn.ReLU()]
            width, side = narrower, side * 2
        factor = 2 if side < out_side else 1
        last = nn.Conv2d(width, out_channels * factor**2, 3, padding=1)
        with torch.no_grad():
            for w in (last.weight, last.bias):
                w.copy_(w[:: factor**2].repeat_interleave(factor**2, 0))  # type: ignore[union-attr, index]
        self.layers = nn.Sequential(*layers, last, nn.PixelShuffle(factor))

    def forward(self, x: Tensor) -> Tensor:
        """Return the output, `N x out_channels x out_side x out_side`, of maps, `N x channels x side x side`."""
        out: Tensor = self.layers(x)
        return out[..., : self.out_side, : self.out_side]
