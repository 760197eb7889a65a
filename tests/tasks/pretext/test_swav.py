"""SwAV."""

import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslrun.base.errors import UserError
from sslrun.tasks.pretext.swav import sinkhorn, swapped_loss
from tests.helpers import make_task, rng
from tests.tasks.pretext.references import LIGHTLY, vectors


def test_the_loss() -> None:
    a, b, _, _ = vectors()
    scores = [F.normalize(z, dim=1) for z in (a, b)]
    loss = float(swapped_loss(torch.cat(scores), 0.1, 0.05, 3))
    assert loss == pytest.approx(LIGHTLY["swav"], rel=1e-5)
    codes = []
    for view in scores:
        q = np.exp(view.numpy().astype(float) / 0.05)
        for _ in range(3):
            q = q / q.sum(0, keepdims=True)
            q = q / q.sum(1, keepdims=True)
        codes.append(q)
    total = 0.0
    for own, other in ((0, 1), (1, 0)):
        for i in range(12):
            p = np.exp(scores[own][i].numpy().astype(float) / 0.1)
            total -= sum(codes[other][i, k] * math.log(p[k] / p.sum()) for k in range(8))
    assert loss == pytest.approx(total / 24, rel=1e-5)


def test_assignments_use_all_prototypes_equally() -> None:
    scores = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)) + torch.tensor([9.0, 0, 0, 0, 0])
    q = sinkhorn(scores, 0.05, 200)
    assert torch.allclose(q.sum(1), torch.ones(60))
    assert torch.allclose(q.sum(0), torch.full((5,), 12.0), atol=1e-3)


def test_prototypes_fit_themselves_to_the_batch(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sslrun")
    task: Any = make_task("swav")
    task.set_sizes(1000, 128)
    assert (len(task.prototypes), caplog.messages) == (128, [])
    task.set_sizes(1000, 20)
    assert (len(task.prototypes), caplog.messages) == (20, ["pretext.prototypes=auto is 20, the batch size"])
    with pytest.raises(UserError, match=r"pretext.prototypes=40 is more than a batch has images: 20"):
        make_task("swav", prototypes=40).set_sizes(1000, 20)


@pytest.mark.parametrize("name", ["swav", "dino"])
def test_prototypes_are_frozen_in_the_first_steps(name: str, pieces: Tensor) -> None:
    task: Any = make_task(name, freeze=0.1)
    prototypes = task.prototypes if name == "swav" else task.head.prototypes
    for step, trained in ((0, False), (9, False), (10, True), (99, True)):
        task.zero_grad()
        task.before_step(step, 100)
        task({"images": pieces[:8]}, rng())["loss"].backward()
        assert (prototypes.grad is not None) == trained


def test_prototypes_have_a_norm_of_1_before_every_step() -> None:
    task: Any = make_task("swav")
    with torch.no_grad():
        task.prototypes.mul_(3)
    task.before_step(0, 10)
    assert torch.allclose(task.prototypes.norm(dim=1), torch.ones(128))


def test_assignments_have_no_gradient() -> None:
    scores = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    swapped_loss(scores, 0.1, 0.05, 3).backward()
    with torch.no_grad():
        codes = torch.cat([sinkhorn(view, 0.05, 3) for view in scores.chunk(2)]).roll(6, 0)
    given = scores.detach().clone().requires_grad_()
    (-(codes * (given / 0.1).log_softmax(1)).sum(1).mean()).backward()
    assert torch.allclose(scores.grad, given.grad, atol=1e-6)  # type: ignore[arg-type]
