import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from sslrun.augment import Augment, Rng, crop, gaussian_blur, generator, recolor

STRONG: dict[str, Any] = {
    "crop_scale": [0.2, 1.0],
    "crop_ratio": [0.75, 1.333],
    "degrees": 10.0,
    "horizontal_flip": True,
    "color_jitter": [0.4, 0.4, 0.4, 0.1],
    "jitter_probability": 0.8,
    "grayscale": 0.2,
    "blur": 0.5,
    "probability": 1.0,
}
NOTHING: dict[str, Any] = {
    **STRONG,
    "crop_scale": [1, 1],
    "degrees": 0,
    "horizontal_flip": False,
    "color_jitter": [0, 0, 0, 0],
} | {
    "grayscale": 0,
    "blur": 0,
}


def rng(seed: int = 0) -> Rng:
    return Rng(torch.Generator().manual_seed(seed))


def ones(n: int, value: float = 1.0) -> Tensor:
    return torch.full((n,), value)


def test_an_rng_draws_what_its_generator_would() -> None:
    ours, theirs = Rng(generator(3, 1, 4)), generator(3, 1, 4)
    assert torch.equal(ours.rand(5, 14), torch.rand(5, 14, generator=theirs))
    assert torch.equal(ours.rand(), torch.rand((), generator=theirs))
    assert torch.equal(ours.randint(7, 2, 5, 4, dim=1), torch.randint(7, (2, 5, 4), generator=theirs))
    assert ours.initial_seed() == theirs.initial_seed()


def test_a_copy_of_an_rng_draws_the_same_numbers_once_more(pieces: Tensor) -> None:
    first = rng()
    first.rand(3)
    second = first.copy()
    augment = Augment(**STRONG)
    assert torch.equal(augment(pieces, first), augment(pieces, second))
    assert torch.equal(first.rand(4), second.rand(4))
    assert first.copy().initial_seed() == first.initial_seed()


def test_nothing_asked_for_changes_nothing(pieces: Tensor) -> None:
    assert torch.equal(Augment(**NOTHING)(pieces, rng()), pieces)


def test_same_generator_same_views_and_range(pieces: Tensor) -> None:
    augment = Augment(**STRONG)
    a, b, c = augment(pieces, rng(1)), augment(pieces, rng(1)), augment(pieces, rng(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert a.shape == pieces.shape
    assert a.min() >= -1e-5
    assert a.max() <= 1 + 1e-5


def test_case_64_each_sample_gets_its_own_augmentation(pieces: Tensor) -> None:
    same = pieces[:1].expand(32, -1, -1, -1)
    views = Augment(**STRONG)(same, rng())
    different = {tuple(v.flatten()[:50].tolist()) for v in views}
    assert len(different) == 32


@pytest.mark.parametrize("key", ["crop_scale", "degrees", "horizontal_flip", "color_jitter", "grayscale", "blur"])
def test_every_key_has_an_effect(pieces: Tensor, key: str) -> None:
    with_one = Augment(**{**NOTHING, key: STRONG[key]})(pieces, rng())
    assert not torch.allclose(with_one, pieces, atol=1e-3)


def test_jitter_probability_is_the_share_of_jittered_pictures(pieces: Tensor) -> None:
    many = pieces[:1].repeat(2000, 1, 1, 1)
    views = Augment(**{**NOTHING, "color_jitter": [0.4, 0.4, 0.4, 0.1], "jitter_probability": 0.3})(many, rng())
    changed = ((views - many).abs().amax((1, 2, 3)) > 1e-3).float().mean()
    assert changed == pytest.approx(0.3, abs=0.04)


def test_probability_is_the_share_of_changed_pictures_and_the_others_are_mirrored_at_most(pieces: Tensor) -> None:
    many = pieces[:1].repeat(1000, 1, 1, 1)
    for share in (0.0, 0.3):
        views = Augment(**{**STRONG, "probability": share})(many, rng())
        same = (views == many).flatten(1).all(1)
        mirrored = (views == many.flip(-1)).flatten(1).all(1)
        assert (same | mirrored).float().mean() == pytest.approx(1 - share, abs=0.04 if share else 0)
        assert int(same.sum()) == pytest.approx(int(mirrored.sum()), rel=0.2)
    all_of_them = Augment(**STRONG)(many, rng())
    assert torch.equal(views[~(same | mirrored)], all_of_them[~(same | mirrored)])  # the draws are the same


def test_crop_of_a_quarter_is_that_quarter(pieces: Tensor) -> None:
    n = len(pieces)
    top_left = crop(pieces, ones(n, -0.5), ones(n, -0.5), ones(n, 0.5), ones(n, 0.5), ones(n, 0))
    naive = torch.nn.functional.interpolate(pieces[:, :, :16, :16], (32, 32), mode="bilinear")
    assert torch.allclose(top_left[:, :, 2:-2, 2:-2], naive[:, :, 2:-2, 2:-2], atol=1e-4)


def test_crop_of_everything_is_the_picture_and_a_negative_width_its_mirror(pieces: Tensor) -> None:
    n = len(pieces)
    assert torch.allclose(crop(pieces, ones(n, 0), ones(n, 0), ones(n), ones(n), ones(n, 0)), pieces, atol=1e-5)
    assert torch.allclose(
        crop(pieces, ones(n, 0), ones(n, 0), -ones(n), ones(n), ones(n, 0)), pieces.flip(-1), atol=1e-5
    )


def test_a_tilt_of_a_quarter_turn_is_rot90(pieces: Tensor) -> None:
    n = len(pieces)
    turned = crop(pieces, ones(n, 0), ones(n, 0), ones(n), ones(n), ones(n, math.pi / 2))
    assert torch.allclose(turned, torch.rot90(pieces, 1, (2, 3)), atol=1e-4)


@pytest.mark.parametrize("factor", [0.6, 1.0, 1.4])
def test_colours_against_torchvision(pieces: Tensor, factor: float) -> None:
    n = len(pieces)
    one, zero = ones(n), ones(n, 0)
    f = ones(n, factor)
    assert torch.allclose(recolor(pieces, f, one, one, zero), tv.adjust_brightness(pieces, factor), atol=1e-4)
    assert torch.allclose(recolor(pieces, one, f, one, zero), tv.adjust_contrast(pieces, factor), atol=2e-3)
    assert torch.allclose(recolor(pieces, one, one, f, zero), tv.adjust_saturation(pieces, factor), atol=2e-3)


def test_no_saturation_is_grey_and_a_whole_turn_of_hue_is_none(pieces: Tensor) -> None:
    one, zero = ones(len(pieces)), ones(len(pieces), 0)
    gray = recolor(pieces, one, one, zero, zero)
    assert torch.allclose(gray, tv.rgb_to_grayscale(pieces, num_output_channels=3), atol=2e-3)
    assert torch.allclose(recolor(pieces, one, one, one, one), pieces, atol=1e-4)
    third = recolor(torch.tensor([0.5, 0.3, 0.3]).view(1, 3, 1, 1), ones(1), ones(1), ones(1), ones(1, 1 / 3))
    assert int(third.argmax()) != 0  # red has become another colour


def test_blur_against_torchvision(pieces: Tensor) -> None:
    sigma = 1.3
    ours = gaussian_blur(pieces, torch.ones(len(pieces), dtype=torch.bool), ones(len(pieces), sigma))
    radius = max(1, round(0.05 * 32))
    theirs = tv.gaussian_blur(pieces, [2 * radius + 1] * 2, [sigma, sigma])
    assert torch.allclose(ours, theirs, atol=1e-4)
    untouched = gaussian_blur(pieces, torch.zeros(len(pieces), dtype=torch.bool), ones(len(pieces), sigma))
    assert torch.allclose(untouched, pieces, atol=1e-6)


def test_crop_areas_lie_between_the_limits() -> None:
    ramp = torch.linspace(0, 1, 64).expand(512, 3, 64, 64).contiguous()  # the slope tells the width of the crop
    views = Augment(**{**NOTHING, "crop_scale": [0.25, 0.5], "crop_ratio": [1.0, 1.0]})(ramp, rng())
    width = (views[:, 0, 32, 48] - views[:, 0, 32, 16]) / (ramp[:, 0, 32, 48] - ramp[:, 0, 32, 16])
    assert width.min() >= math.sqrt(0.25) - 0.02
    assert width.max() <= math.sqrt(0.5) + 0.02
    assert width.std() > 0.02


@pytest.mark.parametrize(
    ("key", "value"),
    [("crop_scale", [0.9, 0.2]), ("crop_ratio", [2.0, 1.0]), ("color_jitter", [0, 0, 0, 0.7])],
)
def test_impossible_settings_are_refused(key: str, value: list[float]) -> None:
    with pytest.raises(ValueError, match=key):
        Augment(**{**STRONG, key: value})
