"""BYOL."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sslrun.tasks.pretext.byol import byol_loss
from sslrun.tasks.pretext.simsiam import negative_cosine
from tests.helpers import batch_of, make_task, rng
from tests.tasks.pretext.references import LIGHTLY, cosine, vectors


def test_byol_and_simsiam() -> None:
    a, b, s, t = vectors()
    naive = sum(cosine(a[i], t[i]) + cosine(b[i], s[i]) for i in range(12)) / 24
    predicted, target = torch.cat([a, b]), torch.cat([s, t])
    assert float(byol_loss(predicted, target)) == pytest.approx(2 - 2 * naive, rel=1e-5)
    assert float(byol_loss(predicted, target)) == pytest.approx(LIGHTLY["byol"], rel=1e-5)
    assert float(negative_cosine(predicted, target)) == pytest.approx(-naive, rel=1e-5)
    assert float(negative_cosine(predicted, target)) == pytest.approx(LIGHTLY["simsiam"], rel=1e-5)


def test_simsiam_has_no_gradient_through_its_target(pieces: Tensor) -> None:
    """The gradient is that with a constant target, and another than without the stop."""
    task: Any = make_task("simsiam").eval()
    views = torch.cat(list(task.views(pieces[:8], rng()).values()))
    constant = task.projector(task.encoder(views)).detach()
    gradients = []
    for stop in (True, False, None):
        task.zero_grad()
        z = task.projector(task.encoder(views))
        if stop is None:
            task(batch_of(pieces[:8]), rng())["loss"].backward()
        else:
            negative_cosine(task.predictor(z), constant if stop else z).backward()
        gradients.append(task.encoder.backbone[0].weight.grad.clone())
    assert torch.allclose(gradients[0], gradients[2], atol=1e-6)
    assert not torch.allclose(gradients[0], gradients[1], atol=1e-4)


@torch.no_grad()
def test_byol_predicts_the_teachers_projections(pieces: Tensor) -> None:
    task: Any = make_task("byol").eval()
    views = torch.cat(list(task.views(pieces, rng()).values()))
    for p in task.teacher.parameters():
        p.mul_(1.1)
    expected = byol_loss(task.predictor(task.projector(task.encoder(views))), task.teacher(views))
    assert float(task(batch_of(pieces), rng())["loss"]) == pytest.approx(float(expected), rel=1e-4)


def test_simsiams_projections_are_normalized_over_the_batch(pieces: Tensor) -> None:
    """As in the paper (section 4.4): batch norm without weights after the last layer."""
    task: Any = make_task("simsiam").train()
    projections = task.projector(task.encoder(pieces))
    assert projections.mean(0).abs().max() < 1e-4
    assert torch.allclose(projections.std(0, correction=0), torch.ones(projections.shape[1]), atol=0.05)
