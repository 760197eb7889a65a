"""Features and probabilities of many images, computed in batches without augmentation.

Images are `N x 3 x S x S`, uint8. Networks must be on the device; they are set to evaluation mode. By default a
batch has as many images as the device takes well.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from sslrun.data.images import Images
from sslrun.device import Device
from sslrun.models.classifier import Classifier, KNNClassifier
from sslrun.models.encoder import Encoder, Pooling, average, pooled

Out = TypeVar("Out")
LARGEST, SMALLEST = 512, 16  # images of a batch, if its size is not given
PIXELS = LARGEST * 64**2  # on the CPU, where larger batches are no faster, and maps of large images fill the memory


def features(encoder: Encoder, images: Tensor | Images, device: Device, batch_size: int | None = None) -> Tensor:
    """Compute the features of images, `N x feature_dim`, float32, on the CPU."""
    return torch.cat([f.cpu() for f in _batches(encoder, encoder, images, device, batch_size)])


def pooled_features(
    encoder: Encoder,
    images: Tensor | Images,
    device: Device,
    poolings: Sequence[Pooling],
    batch_size: int | None = None,
) -> dict[Pooling, Tensor]:
    """Compute the features of images with several poolings at once: for each `N x D`, float32, on the CPU."""

    def forward(batch: Tensor) -> list[Tensor]:
        maps = encoder.maps(batch)
        return [pooled(maps, pooling).cpu() for pooling in poolings]

    columns = zip(*_batches(encoder, forward, images, device, batch_size), strict=True)
    return {pooling: torch.cat(column) for pooling, column in zip(poolings, columns, strict=True)}


def map_features(
    encoder: Encoder, images: Tensor | Images, device: Device, batch_size: int | None = None
) -> list[Tensor]:
    """Compute the spatial means of the backbone's feature maps: for each map `N x C`, float32, on the CPU."""

    def means(batch: Tensor) -> list[Tensor]:
        return [average(m).cpu() for m in encoder.maps(batch)]

    columns = zip(*_batches(encoder, means, images, device, batch_size), strict=True)
    return [torch.cat(column) for column in columns]


def probabilities(
    classifier: Classifier | KNNClassifier, images: Tensor | Images, device: Device, batch_size: int | None = None
) -> Tensor:
    """Compute the probabilities of images, `N x classes`, on the CPU."""
    return torch.cat([p.cpu() for p in _batches(classifier, classifier.probabilities, images, device, batch_size)])


def probabilities_and_maps(
    classifier: Classifier | KNNClassifier, images: Tensor | Images, device: Device, batch_size: int | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Compute in one pass what `probabilities` and `map_features` compute."""
    encoder = classifier.encoder

    def forward(batch: Tensor) -> list[Tensor]:
        maps = encoder.maps(batch)
        found = classifier.probabilities_of(pooled(maps, encoder.pooling))
        return [found.cpu(), *(average(m).cpu() for m in maps)]

    columns = zip(*_batches(classifier, forward, images, device, batch_size), strict=True)
    first, *maps = [torch.cat(column) for column in columns]
    return first, maps


@torch.no_grad()
def _batches(
    network: nn.Module,
    function: Callable[[Tensor], Out],
    images: Tensor | Images,
    device: Device,
    batch_size: int | None,
) -> Iterator[Out]:
    """Yield the function's result for each batch, which it gets as floats in [0, 1] on the device."""
    network.eval()
    if batch_size is None:
        height, width = images[:1].shape[-2:]
        fitting = PIXELS // (height * width) if device.torch.type == "cpu" else LARGEST
        batch_size = min(LARGEST, max(SMALLEST, fitting))
    for chunk in images.split(batch_size):
        with device.autocast(), device.eager():
            out = function(device.floats(chunk))
        yield out
