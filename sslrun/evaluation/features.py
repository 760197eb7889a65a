"""Features and probabilities of many images, in batches, without augmentation."""

import torch
from torch import Tensor

from sslrun.data.images import Images
from sslrun.device import Device
from sslrun.models.classifier import Classifier, KNNClassifier
from sslrun.models.encoder import Encoder, average


@torch.no_grad()
def features(encoder: Encoder, images: Tensor | Images, device: Device, batch_size: int = 512) -> Tensor:
    """Return the features of whole pictures, without augmentation.

    Args:
        encoder: on the device; put into evaluation mode.
        images: `N x 3 x S x S`, uint8.

    Returns:
        `N x feature_dim`, float32, on the CPU.
    """
    encoder.eval()
    out = []
    for part in images.split(batch_size):
        with device.autocast(), device.eager():
            out.append(encoder(device.floats(part)).float().cpu())
    return torch.cat(out)


@torch.no_grad()
def map_features(encoder: Encoder, images: Tensor | Images, device: Device, batch_size: int = 512) -> list[Tensor]:
    """Return the mean over each of a backbone's maps for whole pictures, without augmentation.

    Args:
        encoder: on the device; put into evaluation mode.
        images: `N x 3 x S x S`, uint8.

    Returns:
        For every map `N x C`, float32, on the CPU.
    """
    encoder.eval()
    found: list[list[Tensor]] = []
    for part in images.split(batch_size):
        with device.autocast(), device.eager():
            found.append([average(m).float().cpu() for m in encoder.maps(device.floats(part))])
    return [torch.cat(column) for column in zip(*found, strict=True)]


@torch.no_grad()
def probabilities(
    classifier: Classifier | KNNClassifier, images: Tensor | Images, device: Device, batch_size: int = 512
) -> Tensor:
    """Return the probabilities of whole pictures, without augmentation.

    Args:
        images: `N x 3 x S x S`, uint8.

    Returns:
        `N x classes`, on the CPU.
    """
    classifier.eval()
    out = []
    for part in images.split(batch_size):
        with device.autocast(), device.eager():
            out.append(classifier.probabilities(device.floats(part)).cpu())
    return torch.cat(out)
