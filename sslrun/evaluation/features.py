"""Features and probabilities of many images, in batches, without augmentation.

Images are `N x 3 x S x S`, uint8; a network is on the device, and put into evaluation mode.
"""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from sslrun.data.images import Images
from sslrun.device import Device
from sslrun.models.classifier import Classifier, KNNClassifier
from sslrun.models.encoder import Encoder, Pooling, average, pooled

Out = TypeVar("Out")


def features(
    encoder: Encoder, images: Tensor | Images, device: Device, batch_size: int = 512, pooling: Pooling | None = None
) -> Tensor:
    """Return the features of whole images, `N x D`, float32, on the CPU.

    Args:
        pooling: by default the encoder's own, whose D is its `feature_dim`.
    """

    def of(batch: Tensor) -> Tensor:
        return encoder(batch) if pooling is None else pooled(encoder.maps(batch), pooling)

    return torch.cat([f.float().cpu() for f in _batches(encoder, of, images, device, batch_size)])


def map_features(encoder: Encoder, images: Tensor | Images, device: Device, batch_size: int = 512) -> list[Tensor]:
    """Return the mean over each map of the backbone for whole images: for every map `N x C`, float32, on the CPU."""

    def means(batch: Tensor) -> list[Tensor]:
        return [average(m).float().cpu() for m in encoder.maps(batch)]

    columns = zip(*_batches(encoder, means, images, device, batch_size), strict=True)
    return [torch.cat(column) for column in columns]


def probabilities(
    classifier: Classifier | KNNClassifier, images: Tensor | Images, device: Device, batch_size: int = 512
) -> Tensor:
    """Return the probabilities of whole images, `N x classes`, on the CPU."""
    return torch.cat([p.cpu() for p in _batches(classifier, classifier.probabilities, images, device, batch_size)])


@torch.no_grad()
def _batches(
    network: nn.Module, function: Callable[[Tensor], Out], images: Tensor | Images, device: Device, batch_size: int
) -> Iterator[Out]:
    """Yield what a function of the network makes of each batch of images, as floats in [0, 1] on the device."""
    network.eval()
    for chunk in images.split(batch_size):
        with device.autocast(), device.eager():
            out = function(device.floats(chunk))
        yield out
