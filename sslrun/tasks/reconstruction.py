"""Errors of reconstructed images."""

from torch import Tensor

from sslrun.models.encoder import Encoder


def standardized(images: Tensor, encoder: Encoder) -> Tensor:
    """Return images, `N x 3 x S x S` in [0, 1], in standard deviations from the data set's mean color."""
    return (images - encoder.mean) / encoder.std


def destandardized(x: Tensor, encoder: Encoder) -> Tensor:
    """Return standardized images as images in [0, 1]."""
    return (x * encoder.std + encoder.mean).clamp(0, 1)
