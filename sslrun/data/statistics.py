"""Channel means and standard deviations of a data set."""

import numpy as np
import torch

from sslrun.config.types import Node
from sslrun.data.dataset import Dataset
from sslrun.data.options import shared


def normalization(dataset: Node, data: Dataset) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of the three channels: those of the config, or else computed from images.

    20,000 or more images are subsampled evenly, to at least 10,000.
    """
    options = shared(dataset)
    sample = data.images.take(np.arange(0, len(data), max(1, len(data) // 10_000)))
    sums, squares = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for batch in sample.split(256):
        pixels = batch.double() / 255
        sums += pixels.sum((0, 2, 3))
        squares += pixels.square().sum((0, 2, 3))
    n = len(sample) * sample.image_size**2
    mean = options.mean or (sums / n).tolist()
    std = options.std or (squares / n - (sums / n).square()).clamp(min=0).sqrt().clamp(min=0.01).tolist()
    return [round(m, 4) for m in mean], [round(s, 4) for s in std]
