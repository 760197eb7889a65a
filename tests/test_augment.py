import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from sslrun import augment as augmentation
from sslrun.augment import Augment, Rng, crop, gaussian_blur, generator, recolor
from sslrun.config.compose import compose_nodes
from tests.helpers import IDENTITY, STRONG, rng


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
    assert torch.equal(Augment(**IDENTITY)(pieces, rng()), pieces)


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
    with_one = Augment(**{**IDENTITY, key: STRONG[key]})(pieces, rng())
    assert not torch.allclose(with_one, pieces, atol=1e-3)


def test_jitter_probability_is_the_share_of_jittered_images(pieces: Tensor) -> None:
    many = pieces[:1].repeat(2000, 1, 1, 1)
    views = Augment(**{**IDENTITY, "color_jitter": [0.4, 0.4, 0.4, 0.1], "jitter_probability": 0.3})(many, rng())
    changed = ((views - many).abs().amax((1, 2, 3)) > 1e-3).float().mean()
    assert changed == pytest.approx(0.3, abs=0.04)


def test_probability_is_the_share_of_augmented_images_and_the_others_are_flipped_at_most(pieces: Tensor) -> None:
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


def test_a_full_crop_is_the_identity_and_a_negative_width_flips(pieces: Tensor) -> None:
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
def test_color_jitter_equals_torchvision(pieces: Tensor, factor: float) -> None:
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
    assert int(third.argmax()) != 0  # red has become another color


def test_brightness_and_contrast_together_equal_torchvisions_one_after_the_other(pieces: Tensor) -> None:
    dim = 0.3 + 0.3 * pieces  # nothing is cut off at 0 or 1
    n = len(dim)
    expected = tv.adjust_brightness(tv.adjust_contrast(dim, 1.4), 0.6)
    assert torch.allclose(recolor(dim, ones(n, 0.6), ones(n, 1.4), ones(n), ones(n, 0)), expected, atol=2e-3)


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
    views = Augment(**{**IDENTITY, "crop_scale": [0.25, 0.5], "crop_ratio": [1.0, 1.0]})(ramp, rng())
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


def test_default_nodes_are_complete() -> None:
    (pretext,) = compose_nodes("pretrain", "pretext")
    assert set(pretext["augment"]) == {*STRONG, "_target_"}


UNCHANGED: dict[str, Any] = {
    "crop_scale": [1.0, 1.0],
    "crop_ratio": [1.0, 1.0],
    "degrees": 0.0,
    "horizontal_flip": False,
    "color_jitter": [0.0, 0.0, 0.0, 0.0],
    "jitter_probability": 1.0,
    "grayscale": 0.0,
    "blur": 0.0,
    "probability": 1.0,
}


def views(images: Tensor, **changes: Any) -> Tensor:
    """Return a view of each image by an augmentation that does nothing but the changes."""
    return Augment(**{**UNCHANGED, **changes})(images, Rng(torch.Generator().manual_seed(0)))


def ramps(n: int, size: int = 32) -> Tensor:
    """Return images of which channel 0 rises with x and channel 1 with y, -1 to 1 from edge to edge."""
    places = (2 * torch.arange(size) + 1) / size - 1
    x, y = places.expand(size, size), places[:, None].expand(size, size)
    return torch.stack([x, y, torch.zeros(size, size)]).repeat(n, 1, 1, 1)


def crops(seen: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return centers (x, y) and sizes (width, height) of crops of `ramps`."""
    size = seen.shape[-1]
    low, high = size // 4, 3 * size // 4
    middle = seen[:, :, low:high, low:high]
    x, y = middle[:, 0].mean((1, 2)), middle[:, 1].mean((1, 2))
    width = (seen[:, 0, 0, high] - seen[:, 0, 0, low]) * size / (2 * (high - low))
    height = (seen[:, 1, high, 0] - seen[:, 1, low, 0]) * size / (2 * (high - low))
    return x, y, width, height


@pytest.mark.parametrize("ratio", [2.0, 0.5])
def test_crop_ratio_is_width_over_height(ratio: float) -> None:
    *_, width, height = crops(views(ramps(50), crop_scale=[0.25, 0.25], crop_ratio=[ratio, ratio]))
    assert torch.allclose(width / height, torch.tensor(ratio), rtol=1e-3)
    assert torch.allclose(width * height, torch.tensor(0.25), rtol=1e-3)


@pytest.mark.parametrize(("ratio", "free"), [(4.0, 1), (0.25, 0), (1.0, 0), (1.0, 1)])
def test_crops_lie_anywhere_inside_the_image(ratio: float, free: int) -> None:
    """A crop as wide as the image moves up and down alone, and reaches both edges."""
    crop = crops(views(ramps(500), crop_scale=[0.25, 0.25], crop_ratio=[ratio, ratio]))
    place, size = crop[free], crop[2 + free]
    room = 1 - size
    assert (place.abs() <= room + 1e-3).all()
    assert (place / room).min() < -0.95
    assert (place / room).max() > 0.95
    assert (place / room).mean().abs() < 0.1
    if ratio != 1:
        assert crop[1 - free].abs().max() < 1e-3


def test_hue_shifts_go_either_way() -> None:
    chroma = torch.tensor([[0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])  # I and Q of YIQ
    red = torch.tensor([0.6, 0.4, 0.4])
    seen = views(red.view(1, 3, 1, 1).expand(2000, 3, 2, 2), color_jitter=[0, 0, 0, 0.1])[:, :, 0, 0]
    (i, q), (i0, q0) = chroma @ seen.T, chroma @ red
    shifts = (torch.atan2(q, i) - torch.atan2(q0, i0)) / (2 * math.pi)
    assert shifts.min() == pytest.approx(-0.1, abs=0.002)
    assert shifts.max() == pytest.approx(0.1, abs=0.002)
    assert shifts.mean().abs() < 0.005


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_brightness_contrast_and_saturation_go_either_way(kind: int) -> None:
    strengths = [0.0] * 4
    strengths[kind] = 0.4
    colors = torch.tensor([[0.5, 0.3, 0.3], [0.3, 0.4, 0.3]]).T.view(1, 3, 1, 2).expand(1000, 3, 2, 2)
    seen = views(colors, color_jitter=strengths)
    measures = [seen.mean((1, 2, 3)), seen.mean(1).std((1, 2)), seen.std(1).mean((1, 2))]
    before = [colors.mean((1, 2, 3)), colors.mean(1).std((1, 2)), colors.std(1).mean((1, 2))]
    factor = measures[kind] / before[kind]
    assert factor.min() == pytest.approx(0.6, abs=0.02)
    assert factor.max() == pytest.approx(1.4, abs=0.02)
    assert factor.mean() == pytest.approx(1, abs=0.03)


def test_small_rotations_go_either_way() -> None:
    seen = views(ramps(500), degrees=10)[:, 0]
    angle = torch.atan2(seen[:, 24, 16] - seen[:, 8, 16], seen[:, 16, 24] - seen[:, 16, 8]) * 180 / math.pi
    assert angle.min() == pytest.approx(-10, abs=0.2)
    assert angle.max() == pytest.approx(10, abs=0.2)
    assert angle.mean().abs() < 1


def dots(n: int, size: int) -> Tensor:
    images = torch.zeros(n, 3, size, size)
    images[:, :, size // 2, size // 2] = 1
    return images


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_the_width_of_a_blur_does_not_depend_on_how_many_images_are_blurred(share: float) -> None:
    peak = views(dots(500, 64), blur=share)[:, 0, 32, 32]
    blurred = peak[peak < 1]

    def peak_of(sigma: float) -> float:
        return float(gaussian_blur(dots(1, 64), torch.tensor([True]), torch.tensor([sigma]))[0, 0, 32, 32])

    assert len(blurred) / 500 > 0.7 * share  # the least widths change nothing
    assert blurred.min() < peak_of(1.85)
    assert blurred.max() > peak_of(0.35)
    assert (blurred < peak_of(1.05)).float().mean() > 0.4


@pytest.mark.parametrize(("size", "share"), [(63, 0.0), (64, 0.5), (65, 0.5)])
def test_blur_auto_blurs_half_of_the_images_from_64_px_on(size: int, share: float) -> None:
    noise = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).expand(300, -1, -1, -1)
    changed = (views(noise, blur="auto") != noise).flatten(1).any(1)
    assert changed.float().mean() == pytest.approx(share, abs=0.08 if share else 0)


def test_images_lose_their_color_whether_they_are_jittered_or_not() -> None:
    image = torch.tensor([0.5, 0.3, 0.2]).view(1, 3, 1, 1).expand(2000, 3, 2, 2)
    seen = views(image, color_jitter=[0.4, 0, 0, 0], jitter_probability=0.5, grayscale=0.5)[:, :, 0, 0]
    gray = seen.std(1) < 1e-4
    luminance = seen @ torch.tensor([0.299, 0.587, 0.114])
    jittered = (luminance / (image[0, :, 0, 0] @ torch.tensor([0.299, 0.587, 0.114])) - 1).abs() > 1e-3
    for both in (gray & jittered, gray & ~jittered, ~gray & jittered, ~gray & ~jittered):
        assert both.float().mean() == pytest.approx(0.25, abs=0.03)


def test_everything_random_about_a_view_is_drawn_independently(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Tensor] = {}

    def crop(images: Tensor, x: Tensor, y: Tensor, width: Tensor, height: Tensor, angle: Tensor) -> Tensor:
        area, ratio = (width * height).abs(), (width / height).abs()
        drawn.update(x=x, y=y, area=area, ratio=ratio, mirror=width.sign(), angle=angle)
        return images

    def recolor(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
        drawn.update(brightness=brightness, contrast=contrast, hue=hue, gray=(saturation == 0).float())
        drawn.update(saturation=saturation.where(saturation > 0, 1), jittered=(brightness != 1).float())
        return images

    def blur(images: Tensor, chosen: Tensor, sigma: Tensor) -> Tensor:
        drawn.update(blurred=chosen.float(), sigma=sigma)
        return images

    monkeypatch.setattr(augmentation, "crop", crop)
    monkeypatch.setattr(augmentation, "recolor", recolor)
    monkeypatch.setattr(augmentation, "gaussian_blur", blur)
    images = torch.full((5000, 3, 1, 1), 0.5)
    changes = {"color_jitter": [0.4] * 4, "jitter_probability": 0.5, "grayscale": 0.5, "blur": 0.5}
    seen = views(images, crop_scale=[0.2, 0.5], crop_ratio=[0.75, 1.333], degrees=10, horizontal_flip=True,
                 probability=0.5, **changes)  # fmt: skip
    assert torch.equal(seen, images)
    correlation = torch.corrcoef(torch.stack(list(drawn.values()))).fill_diagonal_(0)
    assert len(correlation) == 14
    assert correlation.abs().max() < 0.06


def test_without_saturation_no_rotation_of_the_hue_gives_a_color() -> None:
    """A view that is both grayscale and jittered is gray."""
    images, one = torch.rand(6, 3, 4, 4), torch.ones(6)
    gray = recolor(images, one, one, torch.zeros(6), torch.linspace(-0.5, 0.5, 6))
    assert (gray.amax(1) - gray.amin(1)).max() < 1e-6


def test_generators_of_other_numbers_or_of_another_order_draw_other_numbers() -> None:
    numbers = list(itertools.product(range(3), repeat=4))
    assert len({generator(*n).initial_seed() for n in numbers}) == len(numbers)
    assert generator(1, 2).initial_seed() == generator(1, 2).initial_seed() != generator(1).initial_seed()


def test_a_rotated_crop_shows_the_rectangle_that_was_asked_for() -> None:
    x, y, width, height, angle = torch.tensor([[0.1, -0.2], [0.2, 0.1], [0.5, -0.3], [0.25, 0.6], [0.5, -0.3]])
    seen = crop(ramps(2), x, y, width, height, angle)[:, :2]
    a, b = ramps(1)[0, 0], ramps(1)[0, 1]  # places in the view
    for i in range(2):
        across, down = width[i] * a, height[i] * b
        expected_x = x[i] + angle[i].cos() * across - angle[i].sin() * down
        expected_y = y[i] + angle[i].sin() * across + angle[i].cos() * down
        assert torch.allclose(seen[i], torch.stack([expected_x, expected_y]), atol=1e-4)


def test_the_border_is_replicated_into_the_corners() -> None:
    white = torch.ones(20, 3, 16, 16)
    assert torch.allclose(views(white, degrees=45), white)


def test_crop_ratios_are_drawn_log_uniformly() -> None:
    *_, width, height = crops(views(ramps(1000), crop_scale=[0.05, 0.05], crop_ratio=[0.25, 4.0]))
    ratio = (width / height).log() / math.log(4)
    assert ratio.mean().abs() < 0.06
    assert (ratio.min(), ratio.max()) == (pytest.approx(-1, abs=0.02), pytest.approx(1, abs=0.02))


@pytest.mark.parametrize("ratio", [4.0, 0.25])
def test_a_crop_is_no_wider_and_no_taller_than_the_image(ratio: float) -> None:
    x, y, width, height = crops(views(ramps(50), crop_scale=[0.9, 0.9], crop_ratio=[ratio, ratio]))
    long, short, place = (width, height, x) if ratio > 1 else (height, width, y)
    assert torch.allclose(long, torch.tensor(1.0), atol=1e-3)
    assert torch.allclose(short, torch.tensor(math.sqrt(0.9 / 4)), atol=1e-3)
    assert place.abs().max() < 1e-3


def test_settings_at_the_limits_are_accepted_and_beyond_them_refused() -> None:
    Augment(**{**STRONG, "color_jitter": [0, 0, 0, 0.5], "crop_scale": [0.5, 0.5], "crop_ratio": [2.0, 2.0]})
    for ratio in ([0.0, 1.0], [-1.0, 1.0]):
        with pytest.raises(ValueError, match="crop_ratio must be"):
            Augment(**{**STRONG, "crop_ratio": ratio})


def test_sigmas_are_from_a_tenth_to_2_px_and_factors_not_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Tensor] = {}

    def recolor(images: Tensor, *factors: Tensor) -> Tensor:
        drawn["factors"] = torch.stack(factors[:3])
        return images

    def blur(images: Tensor, chosen: Tensor, sigma: Tensor) -> Tensor:
        drawn["sigma"] = sigma
        return images

    monkeypatch.setattr(augmentation, "recolor", recolor)
    monkeypatch.setattr(augmentation, "gaussian_blur", blur)
    views(torch.zeros(2000, 3, 2, 2), blur=0.5, color_jitter=[3.0, 3.0, 3.0, 0.0])
    sigma, factors = drawn["sigma"], drawn["factors"]
    assert (sigma.min(), sigma.max()) == (pytest.approx(0.1, abs=0.01), pytest.approx(2, abs=0.01))
    assert (factors.amin(1) == 0).all()
    assert torch.allclose(factors.amax(1), torch.tensor(4.0), atol=0.05)


def test_each_image_is_recolored_by_its_own_factors_in_yiq() -> None:
    images = 0.4 + 0.1 * torch.rand(3, 3, 4, 4)
    brightness, contrast, saturation, hue = torch.tensor(
        [[0.9, 1.1, 1.0], [1.2, 0.8, 1.1], [0.5, 1.3, 1], [0.1, -0.2, 0]]
    )
    seen = recolor(images, brightness, contrast, saturation, hue)
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
    for n in range(3):
        y, i, q = np.tensordot(to_yiq, images[n].double().numpy(), 1)
        chroma = (i + 1j * q) * float(saturation[n]) * np.exp(2j * np.pi * float(hue[n]))
        rgb = np.tensordot(np.linalg.inv(to_yiq), np.stack([y, chroma.real, chroma.imag]), 1)
        expected = float(brightness[n]) * (float(contrast[n]) * rgb + (1 - float(contrast[n])) * y.mean())
        assert np.allclose(seen[n], expected, atol=1e-5)


@pytest.mark.parametrize("size", [8, 16, 96])
def test_each_chosen_image_is_blurred_by_its_own_sigma_at_every_size(size: int) -> None:
    images = torch.rand(4, 3, size, size)
    sigmas, chosen = torch.tensor([0.4, 1.9, 1.0, 1.5]), torch.tensor([True, True, False, True])
    seen = gaussian_blur(images, chosen, sigmas)
    kernel = 2 * max(1, round(0.05 * size)) + 1
    for i, sigma in enumerate(sigmas.tolist()):
        expected = tv.gaussian_blur(images[i], [kernel] * 2, [sigma] * 2) if chosen[i] else images[i]
        assert torch.allclose(seen[i], expected, atol=1e-5)


def test_whether_an_image_is_augmented_does_not_depend_on_its_crop() -> None:
    """The crops of ramps span as much of the range as their width."""
    ramps = torch.linspace(0, 1, 32).expand(2000, 3, 32, 32).contiguous()
    keys = {**IDENTITY, "crop_scale": [0.04, 0.64], "crop_ratio": [1, 1]}
    spans = {}
    for probability in (1.0, 0.5):
        views = Augment(**{**keys, "probability": probability})(ramps, rng())
        span = (views[:, 0, 0, -1] - views[:, 0, 0, 0]).abs()
        spans[probability] = span[span < 0.99]
    assert len(spans[0.5]) == pytest.approx(1000, abs=100)
    assert spans[0.5].mean() == pytest.approx(float(spans[1.0].mean()), abs=0.02)
