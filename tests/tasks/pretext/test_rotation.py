from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslrun.augment import Augment, Rng
from sslrun.tasks.heads import dropped
from sslrun.tasks.pretext.rotation import Rotation
from tests.helpers import IDENTITY, rng, small_encoder


def test_case_56_four_rotations_by_90_degrees_are_the_identity(pieces: Tensor) -> None:
    task = Rotation(small_encoder(), 32, augment=Augment(**IDENTITY), copies=4, hidden_dim=None, dropout=0.0)
    images, which = task.rotated(pieces, rng())
    n = len(pieces)
    assert torch.equal(images[:n], pieces)
    for k in range(4):
        assert (which[k * n : (k + 1) * n] == k).all()
        assert torch.equal(torch.rot90(images[k * n : (k + 1) * n], -k, (2, 3)), pieces)


def test_one_copy_rotates_each_image_by_its_label(pieces: Tensor) -> None:
    task = Rotation(small_encoder(), 32, augment=Augment(**IDENTITY), copies=1, hidden_dim=8, dropout=0.0)
    images, which = task.rotated(pieces, rng())
    assert set(which.tolist()) == {0, 1, 2, 3}
    for image, rotated, k in zip(pieces, images, which.tolist(), strict=True):
        assert torch.equal(torch.rot90(image, k, (1, 2)), rotated)


class Darker(Augment):
    """Halves the brightness of every image."""

    def __call__(self, images: Tensor, rng: Rng) -> Tensor:
        return images / 2


darker = Darker(**IDENTITY)


@pytest.mark.parametrize("copies", [1, 4])
@torch.no_grad()
def test_the_rotation_of_augmented_images_is_predicted(copies: Literal[1, 4], pieces: Tensor) -> None:
    task = Rotation(small_encoder(), 32, augment=darker, copies=copies, hidden_dim=8, dropout=0.25).eval()
    images, which = task.rotated(pieces, rng())
    assert images.max() <= 0.5
    logits = task.head(task.hidden(task.encoder(images)))
    out = task({"images": pieces}, rng())
    assert float(out["loss"]) == pytest.approx(float(F.cross_entropy(logits, which)), rel=1e-4)
    task.head.bias[1] = 100.0
    assert float(task({"images": pieces}, rng())["pretext_accuracy"]) == pytest.approx(
        int((which == 1).sum()) / len(which)
    )


def test_views_are_named_by_their_angle_counterclockwise(pieces: Tensor) -> None:
    views = Rotation(small_encoder(), 32, augment=darker, copies=4, hidden_dim=8, dropout=0.0).views(pieces, rng())
    assert list(views) == ["0°", "90°", "180°", "270°"]
    for k, view in enumerate(views.values()):
        assert torch.equal(view, torch.rot90(pieces / 2, k, (2, 3)))
    one = Rotation(small_encoder(), 32, augment=darker, copies=1, hidden_dim=8, dropout=0.0)
    assert torch.equal(one.views(pieces, rng())["rotated"], one.rotated(pieces, rng())[0])


@pytest.mark.parametrize(("hidden_dim", "widths"), [(None, [32, 4]), (8, [32, 8, 4])])
def test_the_head_has_the_given_width(hidden_dim: int | None, widths: list[int]) -> None:
    task = Rotation(small_encoder(), 32, augment=darker, copies=4, hidden_dim=hidden_dim, dropout=0.25)
    linear = [m for m in (*task.hidden, task.head) if isinstance(m, nn.Linear)]
    assert [linear[0].in_features, *[m.out_features for m in linear]] == widths
    assert sum(isinstance(m, nn.ReLU) for m in task.hidden) == len(linear) - 1


@pytest.mark.parametrize("copies", [1, 4])
def test_dropout_is_in_training_alone_and_its_numbers_are_those_of_the_step(copies: Any, pieces: Tensor) -> None:
    def losses(rate: float, training: bool, *seeds: int) -> list[float]:
        task = Rotation(small_encoder(), 32, augment=darker, copies=copies, hidden_dim=None, dropout=rate)
        task.train(training).encoder.eval()
        return [float(task({"images": pieces}, rng(s))["loss"].detach()) for s in seeds]

    assert losses(0.5, False, 1) == losses(0.0, True, 1) == losses(0.0, False, 1)
    once, again, other = losses(0.5, True, 1, 1, 2)
    assert once == again != other
    assert once != losses(0.0, True, 1)[0]


def test_dropped_values_are_of_the_given_rate_and_the_mean_is_kept() -> None:
    x = dropped(torch.ones(2 * 500, 40), 0.3, rng(0), views=2)
    assert float((x == 0).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert float(x.mean()) == pytest.approx(1, abs=0.01)
    assert x.unique().tolist() == [0.0, pytest.approx(1 / 0.7)]
    assert not torch.equal(x[:500], x[500:])
