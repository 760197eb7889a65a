"""AMDIM."""

import math

import pytest
import torch

from sslrun.tasks.pretext.amdim import nce, soft_clip


def test_the_loss() -> None:
    scores = torch.randn(5, 5, 3, generator=torch.Generator().manual_seed(0))
    total = 0.0
    for i in range(5):
        for p in range(3):
            others = sum(math.exp(scores[i, j, q]) for j in range(5) for q in range(3) if j != i)
            positive = math.exp(scores[i, i, p])
            total -= math.log(positive / (positive + others))
    assert float(nce(scores)) == pytest.approx(total / 15, rel=1e-5)
    assert float(nce(torch.zeros(5, 5, 3))) == pytest.approx(math.log(1 + 4 * 3), rel=1e-5)  # chance
    assert float(soft_clip(torch.tensor(1e6), 20.0)) == 20
    assert float(soft_clip(torch.tensor(0.1), 20.0)) == pytest.approx(0.1, rel=1e-4)
