import torch
from torch import Tensor

from sslrun.augment import Augment
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
