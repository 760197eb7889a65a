"""The color space CIE Lab."""

import torch
from torch import Tensor

# sRGB with white D65 (IEC 61966-2-1).
_TO_XYZ = torch.tensor([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_TO_WHITE = _TO_XYZ / _TO_XYZ.sum(1, keepdim=True)  # XYZ as fractions of those of white
_GRAY = torch.tensor([0.299, 0.587, 0.114])
DELTA = 6 / 29
LEVELS = 48  # of each channel, to find the colors that exist


def rgb_to_lab(images: Tensor) -> Tensor:
    """Return L (0 to 100), a and b of images, `N x 3 x H x W` in [0, 1]."""
    images = images.float()
    linear = torch.where(images <= 0.04045, images / 12.92, ((images + 0.055) / 1.055).clamp(min=0) ** 2.4)
    with torch.autocast(images.device.type, enabled=False):
        xyz = torch.einsum("dc,nchw->ndhw", _TO_WHITE.to(images.device, non_blocking=True), linear)
    f = torch.where(xyz > DELTA**3, xyz.clamp(min=1e-6) ** (1 / 3), xyz / (3 * DELTA**2) + 4 / 29)
    x, y, z = f.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Return images in [0, 1] of L, a and b, `N x 3 x H x W`; colors that do not exist are clipped."""
    y = (lab[:, 0] + 16) / 116
    f = torch.stack([y + lab[:, 1] / 500, y, y - lab[:, 2] / 200], 1)
    xyz = torch.where(f > DELTA, f**3, 3 * DELTA**2 * (f - 4 / 29))
    linear = torch.einsum("dc,nchw->ndhw", torch.linalg.inv(_TO_WHITE).to(lab), xyz).clamp(0, 1)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp(min=1e-6) ** (1 / 2.4) - 0.055)


def luminance(images: Tensor) -> Tensor:
    """Return gray images with three equal channels."""
    with torch.autocast(images.device.type, enabled=False):  # bf16 would leave 8 bits
        gray = torch.einsum("c,nchw->nhw", _GRAY.to(images.device, non_blocking=True), images.float())
    return gray[:, None].expand(-1, 3, -1, -1)


def in_gamut(bin: float) -> Tensor:
    """Return the centers, `K x 2`, of the squares of the ab plane that contain a color of sRGB."""
    levels = torch.linspace(0, 1, LEVELS)
    colors = torch.cartesian_prod(levels, levels, levels).view(-1, 3, 1, 1)
    ab = rgb_to_lab(colors)[:, 1:, 0, 0]
    return (ab / bin).round().unique(dim=0) * bin
