"""VICReg."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sslrun.tasks.pretext.vicreg import vicreg_terms
from tests.helpers import batch_of, make_task, rng
from tests.tasks.pretext.references import LIGHTLY, vectors


def test_the_terms() -> None:
    a, b, _, _ = vectors()
    terms = {name: float(v) for name, v in vicreg_terms(a, b).items()}
    variance, covariance = 0.0, 0.0
    for z in (a.numpy().astype(float), b.numpy().astype(float)):
        c = np.cov(z.T)
        variance += sum(max(0, 1 - math.sqrt(c[i, i] + 1e-4)) for i in range(8)) / 8 / 2
        covariance += sum(c[i, j] ** 2 for i in range(8) for j in range(8) if i != j) / 8
    assert terms["invariance"] == pytest.approx(float(((a - b) ** 2).mean()), rel=1e-5)
    assert terms["variance"] == pytest.approx(variance, rel=1e-5)
    assert terms["covariance"] == pytest.approx(covariance, rel=1e-5)
    assert 25 * terms["invariance"] + 25 * variance + covariance == pytest.approx(LIGHTLY["vicreg"], rel=1e-5)
    constant = {name: float(v) for name, v in vicreg_terms(torch.ones(6, 8), torch.ones(6, 8)).items()}
    assert constant == pytest.approx({"invariance": 0, "variance": 0.99, "covariance": 0})


@torch.no_grad()
def test_the_loss_is_the_weighted_sum(pieces: Tensor) -> None:
    task: Any = make_task("vicreg", invariance_weight=2.0, variance_weight=3.0, covariance_weight=5.0)
    out = {name: float(v) for name, v in task(batch_of(pieces), rng()).items()}
    expected = 2 * out["invariance"] + 3 * out["variance"] + 5 * out["covariance"]
    assert out["loss"] == pytest.approx(expected, rel=1e-5)
