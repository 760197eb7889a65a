"""What the random views of many images look like."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sslrun import augment as augmentation
from sslrun.augment import Augment, Rng, gaussian_blur

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
