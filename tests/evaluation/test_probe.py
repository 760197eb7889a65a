"""Logistic regression on frozen features, and what it chooses."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sslrun.data.dataset import Dataset
from sslrun.data.images import Images
from sslrun.device import Device
from sslrun.evaluation.probe import better_pooling, labeled_features, regression
from sslrun.models.encoder import Encoder


class Maps(nn.Module):
    """Hands the pictures on as two maps: what a backbone is, without weights."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = [3, 3]

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x, x]


def of(images: Tensor, labels: Tensor) -> Dataset:
    rows = images.permute(0, 2, 3, 1).contiguous()
    return Dataset(Images([rows], np.zeros((len(rows), 16), np.uint8)), labels, ["a", "b"], [""] * len(rows))


def of_rows(data: Dataset, labels: Tensor) -> Dataset:
    return Dataset(data.images, labels, ["a", "b"], data.names)


def halves(n: int, seed: int) -> Dataset:
    """Pictures whose left or right half is light: their mean is the same."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    images = torch.randint(0, 100, (n, 3, 8, 8), generator=rng)
    for image, label in zip(images, labels, strict=True):
        image[:, :, 4 * label : 4 * label + 4] += 20
    return of(images.to(torch.uint8), labels)


def shades(n: int, seed: int) -> Dataset:
    """Pictures that are light or dark as a whole, with a bright spot anywhere: each field tells less than the mean."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    images = torch.full((n, 3, 8, 8), 60) + 6 * labels.view(n, 1, 1, 1)
    for image in images:
        y, x = (4 * torch.randint(0, 2, (2,), generator=rng)).tolist()
        image[:, y : y + 4, x : x + 4] += 100 + torch.randint(0, 5, (1,), generator=rng)
    return of(images.to(torch.uint8), labels)


def test_a_rare_class_takes_part_in_the_choice() -> None:
    """Of 20,000 pictures two are of the rare class, which a draw of 5,000 would mostly miss."""
    data = halves(20000, 0)
    assert data.labels is not None
    labels = torch.zeros(20000, dtype=torch.int64)
    labels[[7, 1500]] = 1
    for seed in range(5):
        encoder = Encoder(Maps(), [0.0] * 3, [1.0] * 3, image_size=8)
        device = Device(name="cpu", precision="fp32", memory_format="contiguous", compile=None, threads=None)
        assert set(better_pooling(encoder, of_rows(data, labels), None, device, seed)[1]) == {"average", "grid"}


@pytest.mark.parametrize(("kind", "best"), [(halves, "grid"), (shades, "average")])
@pytest.mark.parametrize("validation", [True, False])
def test_the_readout_is_the_one_whose_features_tell_the_classes(kind: Any, best: str, validation: bool) -> None:
    encoder = Encoder(Maps(), [0.0] * 3, [1.0] * 3, image_size=8)
    device = Device(name="cpu", precision="fp32", memory_format="contiguous", compile=None, threads=None)
    data, val = kind(12, 0), kind(100, 1)
    encoder.pooling, scores, strength = better_pooling(encoder, data, val if validation else None, device, seed=0)
    assert encoder.pooling == best == max(scores, key=lambda r: scores[r])
    assert encoder(torch.rand(2, 3, 8, 8)).shape == (2, encoder.feature_dim) == (2, {"average": 3, "grid": 24}[best])
    features, labels = labeled_features(encoder, data, device)
    val_features = labeled_features(encoder, val, device) if validation else None
    searched, given = (regression(features, labels, val_features, 0, 2, c) for c in (None, strength))
    assert searched[2] == strength
    assert searched[0].equal(given[0])
