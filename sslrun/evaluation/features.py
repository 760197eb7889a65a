"""Features and probabilities of many images, in batches, without augmentation."""

from typing import Any

import torch
from torch import Tensor

from sslrun.data.images import Images
from sslrun.device import Device
from sslrun.models.classifier import Classifier, KNNClassifier
from sslrun.models.encoder import Encoder


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
def stage_features(encoder: Encoder, images: Tensor | Images, device: Device, batch_size: int = 512) -> list[Tensor]:
    """Return the features of every stage of a backbone, the last being what it returns, for whole pictures.

    Args:
        encoder: on the device; put into evaluation mode.
        images: `N x 3 x S x S`, uint8.

    Returns:
        For every stage `N x C`, the mean over its map, float32, on the CPU; without `stages` the last alone.
    """
    encoder.eval()
    backbone: Any = encoder.backbone
    maps: list[Tensor] = []
    stages = backbone.stages[:-1] if isinstance(getattr(backbone, "stages", None), list) else []
    hooks = [s.register_forward_hook(lambda _, __, out: maps.append(out.mean((2, 3)))) for s in stages]
    last = backbone.register_forward_hook(lambda _, __, out: maps.append(out))
    found: list[list[Tensor]] = []
    try:
        for part in images.split(batch_size):
            maps.clear()
            with device.autocast(), device.eager():
                encoder(device.floats(part))
            found.append([m.float().cpu() for m in maps])
    finally:
        for hook in [*hooks, last]:
            hook.remove()
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
