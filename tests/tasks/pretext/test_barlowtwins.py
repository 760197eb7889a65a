"""Barlow Twins."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sslrun.tasks.pretext.barlowtwins import barlow_loss, cross_correlation
from tests.helpers import batch_of, make_task, rng
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


@torch.no_grad()
def test_the_weight_is_that_of_the_config(pieces: Tensor) -> None:
    low, high = (
        float(make_task("barlowtwins", redundancy_weight=w)(batch_of(pieces), rng())["loss"]) for w in (0.0, 1.0)
    )
    task: Any = make_task("barlowtwins")
    views = torch.cat(list(task.views(pieces, rng()).values()))
    c = cross_correlation(*task.projector(task.encoder(views)).chunk(2))
    assert low == pytest.approx(float(barlow_loss(c, 0.0)), rel=1e-3)
    assert high == pytest.approx(float(barlow_loss(c, 1.0)), rel=1e-3)
    assert high > 2 * low
