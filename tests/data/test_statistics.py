import numpy as np
import pytest
import torch

from sslrun.data.dataset import Dataset
from sslrun.data.images import Images
from sslrun.data.statistics import normalization


@pytest.mark.parametrize("n", [100, 30_000])
def test_mean_and_std_of_the_channels_are_those_of_the_pixels_also_of_many_images(n: int) -> None:
    pixels = np.random.default_rng(0).integers(0, (64, 128, 256), (n, 2, 2, 3), dtype=np.uint8)
    images = Images([torch.from_numpy(pixels)], np.empty((n, 16), np.uint8))
    mean, std = normalization({"image_size": 8}, Dataset(images, None, [], [str(i) for i in range(n)]))
    assert mean == pytest.approx(pixels.mean((0, 1, 2)) / 255, rel=0.05)
    assert std == pytest.approx(pixels.std((0, 1, 2)) / 255, rel=0.05)
