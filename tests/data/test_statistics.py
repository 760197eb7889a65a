import numpy as np
import pytest
import torch

from sslrun.data.dataset import Dataset
from sslrun.data.images import Images, digests
from sslrun.data.statistics import normalization


@pytest.mark.parametrize("n", [100, 30_000])
def test_mean_and_std_of_the_channels_are_those_of_the_pixels_also_of_many_images(n: int) -> None:
    pixels = np.random.default_rng(0).integers(0, (64, 128, 256), (n, 2, 2, 3), dtype=np.uint8)
    images = Images([torch.from_numpy(pixels)], np.empty((n, 16), np.uint8))
    mean, std = normalization({"image_size": 8}, Dataset(images, None, [], [str(i) for i in range(n)]))
    assert mean == pytest.approx(pixels.mean((0, 1, 2)) / 255, rel=0.05)
    assert std == pytest.approx(pixels.std((0, 1, 2)) / 255, rel=0.05)


def flat(values: np.ndarray) -> Dataset:
    """Return images of 2 px, each of one gray value."""
    pixels = np.ascontiguousarray(np.broadcast_to(values.astype(np.uint8)[:, None, None, None], (len(values), 2, 2, 3)))
    return Dataset(Images([torch.from_numpy(pixels)], digests(pixels)), None, [], [str(i) for i in range(len(values))])


def test_mean_and_std_of_the_config_are_used_as_they_are() -> None:
    data = flat(np.array([0, 255]))
    assert normalization({"image_size": 8}, data) == ([0.5] * 3, [0.5] * 3)
    given = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    assert normalization({"image_size": 8, **given}, data) == (given["mean"], given["std"])
    assert normalization({"image_size": 8, "mean": given["mean"]}, data) == (given["mean"], [0.5] * 3)
    assert normalization({"image_size": 8, "std": given["std"]}, data) == ([0.5] * 3, given["std"])


def test_images_of_one_color_have_a_standard_deviation_of_a_hundredth_and_four_decimals_are_kept() -> None:
    assert normalization({"image_size": 8}, flat(np.array([51, 51]))) == ([0.2] * 3, [0.01] * 3)
    mean, std = normalization({"image_size": 8}, flat(np.array([0, 0, 100])))
    assert mean == [round(100 / 3 / 255, 4)] * 3
    assert std == [round(100 / 255 * 2**0.5 / 3, 4)] * 3


def test_the_sample_of_many_images_is_spread_over_all_of_them() -> None:
    ordered = np.arange(30_001) * 256 // 30_001
    mean, std = normalization({"image_size": 8}, flat(ordered))
    assert mean == [round(float(ordered[::3].mean()) / 255, 4)] * 3
    assert std == pytest.approx([ordered[::3].std() / 255] * 3, abs=1e-4)
    few = np.arange(19_999) * 256 // 19_999  # not sampled
    assert normalization({"image_size": 8}, flat(few))[0] == [round(float(few.mean()) / 255, 4)] * 3
