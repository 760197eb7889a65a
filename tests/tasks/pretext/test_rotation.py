from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslrun.augment import Augment, Rng
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
    logits = task.head(task.encoder(images))
    out = task({"images": pieces}, rng())
    assert float(out["loss"]) == pytest.approx(float(F.cross_entropy(logits, which)), rel=1e-4)
    task.head[-1].bias[1] = 100.0  # type: ignore[operator]
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
def test_the_head_has_the_given_width_and_dropout(hidden_dim: int | None, widths: list[int]) -> None:
    head = Rotation(small_encoder(), 32, augment=darker, copies=4, hidden_dim=hidden_dim, dropout=0.25).head
    linear = [m for m in head if isinstance(m, nn.Linear)]
    assert [linear[0].in_features, *[m.out_features for m in linear]] == widths
    assert [m.p for m in head if isinstance(m, nn.Dropout)] == [0.25]
    assert isinstance(head[-2], nn.Dropout)
    assert sum(isinstance(m, nn.ReLU) for m in head) == len(linear) - 1
