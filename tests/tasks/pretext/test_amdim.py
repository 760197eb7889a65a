"""AMDIM."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sslrun.tasks.pretext.amdim import nce, soft_clip
from tests.helpers import batch_of, make_task, rng


def test_the_loss() -> None:
    scores = torch.randn(5, 5, 3, generator=torch.Generator().manual_seed(0))
    total = 0.0
    for i in range(5):
        for p in range(3):
            others = sum(math.exp(scores[i, j, q]) for j in range(5) for q in range(3) if j != i)
            positive = math.exp(scores[i, i, p])
            total -= math.log(positive / (positive + others))
    assert float(nce(scores)) == pytest.approx(total / 15, rel=1e-5)
    assert torch.autograd.gradcheck(nce, scores.double().requires_grad_())
    assert float(nce(torch.zeros(5, 5, 3))) == pytest.approx(math.log(1 + 4 * 3), rel=1e-5)  # chance
    assert float(soft_clip(torch.tensor(1e6), 20.0)) == 20
    assert float(soft_clip(torch.tensor(0.1), 20.0)) == pytest.approx(0.1, rel=1e-4)


@torch.no_grad()
def test_features_of_one_view_meet_the_maps_of_the_other(pieces: Tensor) -> None:
    task: Any = make_task("amdim", clip=0.5, score_weight=0.3).eval()
    views = list(task.views(pieces[:6], rng()).values())
    losses = []
    for own, other in ((0, 1), (1, 0)):
        g = task.projector(task.encoder(views[own]))
        for layer, m in zip(task.local, task.encoder.maps(views[other])[-2:], strict=True):
            scores = torch.einsum("id,jdp->ijp", g, layer(m).flatten(2)) / 128**0.5
            losses.append(float(nce(soft_clip(scores, 0.5)) + 0.3 * scores.square().mean()))
    assert float(task(batch_of(pieces[:6]), rng())["loss"]) == pytest.approx(sum(losses) / 4, rel=1e-4)
