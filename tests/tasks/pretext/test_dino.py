"""DINO."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sslrun.tasks.pretext.dino import dino_loss
from tests.helpers import make_task, rng
from tests.tasks.pretext.references import LIGHTLY, vectors


def test_the_loss() -> None:
    a, b, s, t = vectors()
    student, teacher = torch.cat([a, b]), torch.cat([s, t])
    loss = float(dino_loss(student / 0.1, (teacher / 0.04).softmax(1)))
    assert loss == pytest.approx(LIGHTLY["dino"], rel=1e-5)
    total = 0.0
    for x, y in ((a, t), (b, s)):
        for i in range(12):
            p, q = np.exp(x[i].numpy() / 0.1 - 40), np.exp(y[i].numpy() / 0.04 - 80)
            total -= sum(q[k] / q.sum() * math.log(p[k] / p.sum()) for k in range(8))
    assert loss == pytest.approx(total / 24, rel=1e-4)


def test_the_center_is_the_moving_average_of_the_teachers_outputs(pieces: Tensor) -> None:
    task: Any = make_task("dino", center_momentum=0.9, momentum=0.0)
    expected = torch.zeros_like(task.center)
    for step in range(3):
        task({"images": pieces[:8]}, rng(step))
        expected = 0.9 * expected + 0.1 * task.outputs.mean(0)
        task.after_step(step, 100)
        assert torch.allclose(task.center, expected, atol=1e-6)


def test_a_constant_teacher_has_an_entropy_of_0_and_a_uniform_one_of_ln_k(pieces: Tensor) -> None:
    task: Any = make_task("dino", teacher_temperature=1e6, output_dim=1024)
    assert float(task({"images": pieces[:8]}, rng())["teacher_entropy"]) == pytest.approx(6.931, abs=1e-3)
    task = make_task("dino")
    task.center[0] = -1e3
    assert float(task({"images": pieces[:8]}, rng())["teacher_entropy"]) == pytest.approx(0, abs=1e-3)
