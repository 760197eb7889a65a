"""The color space Lab, and colorization."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sslrun.base.errors import UserError
from sslrun.tasks.colors import in_gamut, lab_to_rgb, luminance, rgb_to_lab
from tests.helpers import cpu, make_task, rng

# By the formulas of IEC 61966-2-1 and CIE 15, computed by hand.
KNOWN = {
    (1.0, 0.0, 0.0): (53.24, 80.09, 67.20), (0.0, 1.0, 0.0): (87.73, -86.18, 83.18),
    (0.0, 0.0, 1.0): (32.30, 79.19, -107.86), (1.0, 1.0, 1.0): (100.0, 0.0, 0.0), (0.0, 0.0, 0.0): (0.0, 0.0, 0.0),
    (0.2, 0.5, 0.3): (47.68, -35.77, 20.85), (0.01, 0.02, 0.0): (1.15, -1.38, 1.70),
}  # fmt: skip


@pytest.mark.parametrize(("rgb", "lab"), [*KNOWN.items()])
def test_known_colors(rgb: tuple[float, ...], lab: tuple[float, ...]) -> None:
    found = rgb_to_lab(torch.tensor(rgb).view(1, 3, 1, 1)).flatten().tolist()
    assert found == pytest.approx(lab, abs=0.05)


def test_back_and_forth_is_the_same(pieces: Tensor) -> None:
    assert torch.allclose(lab_to_rgb(rgb_to_lab(pieces)), pieces, atol=1e-4)


def test_gray_has_no_color(pieces: Tensor) -> None:
    gray = luminance(pieces)
    assert rgb_to_lab(gray)[:, 1:].abs().max() < 0.01
    assert torch.equal(gray[:, 0], gray[:, 2])


def test_color_classes_contain_every_color_that_exists() -> None:
    centers = in_gamut(10.0)
    assert 200 < len(centers) < 330  # 313 in the paper
    ab = rgb_to_lab(torch.rand(4000, 3, 1, 1, generator=torch.Generator().manual_seed(0)))[:, 1:, 0, 0]
    assert (torch.cdist(ab, centers).amin(1) <= 10 / math.sqrt(2) + 0.01).float().mean() > 0.99


def images_of(pixels: Tensor) -> Any:
    return _Wrapped(pixels.mul(255).round().byte())


class _Wrapped:
    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self.pixels[rows]


def test_classes_are_weighted_by_their_frequency(pieces: Tensor) -> None:
    task: Any = make_task("colorization")
    task.prepare(images_of(pieces), cpu())
    ab = rgb_to_lab(torch.nn.functional.adaptive_avg_pool2d(pieces, 8))[:, 1:]
    frequency = torch.bincount(task._classes(ab).flatten(), minlength=len(task.centers)).double()
    p = frequency / frequency.sum()
    naive = [1 / (0.5 * float(q) + 0.5 / len(p)) for q in p]
    scale = sum(float(q) * w for q, w in zip(p, naive, strict=True))
    assert task.weights.tolist() == pytest.approx([w / scale for w in naive], rel=1e-3)
    assert float((p * task.weights).sum()) == pytest.approx(1, rel=1e-4)


def test_uniform_logits_have_the_loss_of_chance(pieces: Tensor) -> None:
    task: Any = make_task("colorization").eval()
    task.prepare(images_of(pieces), cpu())
    task.decoder.forward = lambda x: torch.zeros(60, len(task.centers), 8, 8)
    assert float(task({"images": pieces}, rng())["loss"]) == pytest.approx(math.log(len(task.centers)), rel=1e-4)


def test_gray_images_are_refused(pieces: Tensor) -> None:
    with pytest.raises(UserError, match="learns from colors, but the images are gray"):
        make_task("colorization").prepare(images_of(luminance(pieces)), cpu())


def test_the_network_sees_the_view_without_its_colors_and_predicts_those_of_the_view(pieces: Tensor) -> None:
    """The loss, with logits that differ, by a naive loop over the view's 4 px cells."""
    task: Any = make_task("colorization").eval()
    task.prepare(images_of(pieces), cpu())
    seen: list[Tensor] = []
    task.encoder.backbone.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    logits = rng(3).randn(4, len(task.centers), 8, 8)
    task.decoder.forward = lambda x: logits
    loss = float(task({"images": pieces[:4]}, rng())["loss"])
    gray = seen[0] * task.encoder.std + task.encoder.mean
    assert torch.allclose(gray[:, 0], gray[:, 2], atol=1e-5)
    view = task.augment(pieces[:4], rng())
    assert not torch.allclose(view, pieces[:4], atol=0.1)
    total = weight = 0.0
    for i in range(4):
        for y in range(8):
            for x in range(8):
                cell = view[i, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].mean((1, 2)).view(1, 3, 1, 1)
                k = int((task.centers - rgb_to_lab(cell)[0, 1:, 0, 0]).norm(dim=1).argmin())
                total -= float(task.weights[k] * logits[i, :, y, x].log_softmax(0)[k])
                weight += float(task.weights[k])
    assert loss == pytest.approx(total / weight, rel=1e-4)


def test_luminance_is_that_of_the_eye() -> None:
    """ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B."""
    found = luminance(torch.eye(3).view(3, 3, 1, 1))[:, 0].flatten().tolist()
    assert found == pytest.approx([0.299, 0.587, 0.114], abs=1e-3)
