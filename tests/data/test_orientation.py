"""Whether images have a canonical orientation."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from sslrun.data.cache import resized
from sslrun.data.images import Images, digests
from sslrun.data.orientation import SIDE, blank_share, gray_share, orientation, pixels, sample
from tests.published import piece


def batch(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255


def shuffled(array: np.ndarray) -> torch.Tensor:
    """Return shuffled images, as `orientation.sample` does."""
    array = np.ascontiguousarray(array)
    return sample(Images([torch.from_numpy(array)], digests(array)))


def test_a_sample_has_distinct_shuffled_images_of_32_px() -> None:
    array = np.tile(np.arange(250, dtype=np.uint8)[:, None, None, None], (1, 40, 40, 3))
    result = shuffled(array)
    assert result.shape == (250, 3, 32, 32)
    values = (result[:, 0, 0, 0] * 255).round().int().tolist()
    assert sorted(values) == list(range(250)) != values


def test_gray_and_blank_fractions() -> None:
    color = np.stack([np.asarray(piece(32, i)) for i in range(8)])
    gray = np.repeat(color[:6, :, :, :1], 3, axis=3)
    blank = np.full((2, 32, 32, 3), 77, dtype=np.uint8)
    assert gray_share(batch(np.concatenate([color, gray, blank]))) == 0.5
    assert blank_share(batch(np.concatenate([color, gray, blank]))) == 2 / 16


def test_digits_have_a_canonical_orientation_and_handedness() -> None:
    array = (load_digits().images[..., None] * 15.9).astype(np.uint8)
    result = orientation(shuffled(resized(array, 24, "rgb")))
    assert result.rotation > 0.8
    assert result.flip > 0.8


def test_noise_has_no_canonical_orientation() -> None:
    result = orientation(torch.rand(800, 3, 32, 32))
    assert 0.19 < result.rotation < 0.31
    assert 0.19 < result.errors_by_180 < 0.31  # a third of the errors
    assert 0.42 < result.flip < 0.58


def test_randomly_rotated_images_have_no_canonical_orientation() -> None:
    array = resized((load_digits().images[..., None] * 15.9).astype(np.uint8), 24, "rgb")
    rotations = np.random.default_rng(0).integers(0, 4, len(array))
    rotated = np.stack([np.rot90(a, k) for a, k in zip(array, rotations, strict=True)])
    assert orientation(shuffled(rotated)).rotation < 0.31


def test_stripes_are_ambiguous_by_180_degrees() -> None:
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.integers(0, 255, (600, 32, 1, 1), dtype=np.uint8), 32, axis=2)
    result = orientation(shuffled(np.repeat(rows, 3, axis=3)))
    assert 0.4 < result.rotation < 0.6
    assert result.errors_by_180 > 0.9 * (1 - result.rotation)


def test_large_images_are_made_small_as_pillow_does_it() -> None:
    array = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
    expected = [np.asarray(Image.fromarray(a).resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for a in array]
    result = (sample(Images([torch.from_numpy(array)], digests(array))) * 255).permute(0, 2, 3, 1).numpy()
    order = [int(np.abs(result - e).mean((1, 2, 3)).argmin()) for e in expected]
    assert sorted(order) == [0, 1, 2]
    assert np.abs(result[order] - np.stack(expected)).max() <= 1


def test_the_sample_is_of_2000_images_and_depends_on_the_seed() -> None:
    array = np.zeros((2100, 4, 4, 3), dtype=np.uint8)
    array[..., 0], array[..., 1] = np.arange(2100)[:, None, None] % 256, np.arange(2100)[:, None, None] // 256
    images = Images([torch.from_numpy(array)], digests(array))
    first, again, other = sample(images), sample(images), sample(images, 1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    numbers = (first[:, :2, 0, 0] * 255).round() @ torch.tensor([1.0, 256.0])
    assert len(set(numbers.tolist())) == 2000


def test_an_image_is_gray_up_to_small_differences_at_every_pixel_and_blank_in_every_channel() -> None:
    images = torch.full((4, 3, 32, 32), 0.5)
    images[0, 0] += 2 / 255 - 1e-6
    images[1, 0] += 3 / 255
    images[2, 0, 5, 5] += 0.5  # at one pixel
    images[3, :, :, ::2] += 0.3
    assert gray_share(images) == 0.5
    assert blank_share(images) == pytest.approx(0.5)  # of one color each, which is not gray for the second
    images[0, 0, :, ::2] += 0.3  # in one channel
    assert blank_share(images) == 0.25
    images[0, 0] = 0.5 + 1.9 / 255 * torch.tensor([-1.0, 1.0]).repeat(16)  # a standard deviation of 1.9
    assert blank_share(images) == 0.5
    images[0, 0] = 0.5 + 2.1 / 255 * torch.tensor([-1.0, 1.0]).repeat(16)
    assert blank_share(images) == 0.25


def test_the_orientation_of_too_few_images_is_not_measured() -> None:
    images = torch.rand(50, 3, 32, 32)
    images[:20] = images[:20, :1]
    images[:5] = 0.3
    many, few = pixels(images), pixels(images[:49])
    assert (many["sampled"], many["gray"], many["blank"]) == pytest.approx((50, 0.4, 0.1))
    assert few["orientation"] is None
    assert (few["sampled"], few["gray"]) == (49, pytest.approx(20 / 49))
    assert set(many["orientation"]) == {"rotation", "errors_by_180", "flip", "images"}
    assert many["orientation"]["images"] == 13  # the last quarter


def test_images_lit_from_one_side_have_a_handedness() -> None:
    """Left to right, and neither top to bottom nor by their brightness."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 60, 32)[None, None, :, None]
    array = (rng.integers(0, 120, (200, 1, 1, 1)) + ramp + rng.integers(0, 60, (200, 32, 32, 3))).astype(np.uint8)
    upright = orientation(batch(array))
    assert upright.flip > 0.95
    assert upright.rotation > 0.95
    assert upright.images == 50
    top_lit = orientation(batch(np.ascontiguousarray(array.transpose(0, 2, 1, 3))))
    assert top_lit.flip < 0.7
    assert top_lit.rotation > 0.95
    assert top_lit.errors_by_180 < 0.05


def test_a_sample_has_the_images_of_one_group_after_another() -> None:
    images = Images([torch.arange(40).view(40, 1, 1, 1).expand(40, 32, 32, 3).to(torch.uint8).contiguous()],
                    np.zeros((40, 16), np.uint8))  # fmt: skip
    shuffled = sample(images)[:, 0, 0, 0].mul(255).round().int().tolist()
    assert sample(images, groups=[str(i) for i in range(40)])[:, 0, 0, 0].mul(255).round().int().tolist() == shuffled
    by_group = sample(images, groups=[str(i // 4) for i in range(40)])[:, 0, 0, 0].mul(255).round().int().tolist()
    assert sorted(by_group) == [*range(40)]
    objects = [i // 4 for i in by_group]
    assert all(len({*objects[k : k + 4]}) == 1 for k in range(0, 40, 4))
    assert objects != sorted(objects)
