"""Barlow Twins."""

import numpy as np
import pytest
import torch

from sslrun.tasks.pretext.barlowtwins import barlow_loss, cross_correlation
from tests.tasks.pretext.references import LIGHTLY, vectors


def test_the_loss() -> None:
    a, b, _, _ = vectors()
    c = cross_correlation(a, b)
    total = 0.0
    for i in range(8):
        for j in range(8):
            x, y = a[:, i].numpy().astype(float), b[:, j].numpy().astype(float)
            value = float(np.corrcoef(x, y)[0, 1])
            assert float(c[i, j]) == pytest.approx(value, abs=1e-4)
            total += (1 - value) ** 2 if i == j else 0.005 * value**2
    assert float(barlow_loss(c, 0.005)) * 8 == pytest.approx(total, rel=1e-3)
    assert float(barlow_loss(c, 0.005)) * 8 == pytest.approx(LIGHTLY["barlowtwins"], rel=1e-4)
    assert float(barlow_loss(torch.eye(8), 0.005)) == 0
    assert float(barlow_loss(cross_correlation(torch.ones(4, 8), torch.ones(4, 8)), 0.005)) == 1
