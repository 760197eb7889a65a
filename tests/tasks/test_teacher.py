"""Moving averages of a network."""

from typing import Any

import pytest
import torch
from torch import nn

from sslrun.models.encoder import Encoder
from sslrun.tasks.teacher import Teacher, decay_at
from tests.helpers import batch_of, make_task, rng, small_encoder


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = small_encoder()


def test_the_teacher_is_the_moving_average_in_closed_form() -> None:
    student = Student()
    teacher = Teacher(encoder=student.encoder)
    decays, history = [0.9, 0.5, 0.99, 0.7], [[p.detach().clone() for p in student.parameters()]]
    for i, decay in enumerate(decays):
        with torch.no_grad():
            for p in student.parameters():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
        history.append([p.detach().clone() for p in student.parameters()])
        teacher.follow(student, decay)
    weights = [1.0]
    for decay in decays:
        weights = [w * decay for w in weights] + [1 - decay]
    for k, p in enumerate(teacher.parameters()):
        expected = sum(w * values[k] for w, values in zip(weights, history, strict=True))
        assert torch.allclose(p, expected, atol=1e-6)  # type: ignore[arg-type]
        assert not p.requires_grad


def test_the_decay_rises_from_its_base_to_1() -> None:
    values = [decay_at(step, 100, 0.99) for step in range(101)]
    assert values[0] == pytest.approx(0.99)
    assert values[50] == pytest.approx(0.995)
    assert values[100] == 1
    assert values == sorted(values)


@pytest.mark.parametrize(
    ("name", "downstream"), [("byol", "encoder"), ("dino", "teacher.encoder"), ("moco", "encoder")]
)
def test_which_encoder_goes_downstream(name: str, downstream: str) -> None:
    task = make_task(name)
    assert task.downstream == downstream
    assert isinstance(task.get_submodule(downstream), Encoder)
    optimized = {id(p) for p in task.parameters() if p.requires_grad}
    assert not optimized & {id(p) for p in task.get_submodule("teacher").parameters()}


@pytest.mark.parametrize("name", ["byol", "dino", "moco"])
def test_the_teacher_gets_no_gradient_and_follows_after_each_step(name: str) -> None:
    task = make_task(name)
    task.set_sizes(32, 8)
    before = [p.clone() for p in task.get_submodule("teacher").parameters()]
    task(batch_of(rng().rand(8, 3, 32, 32)), rng())["loss"].backward()
    assert all(p.grad is None for p in task.get_submodule("teacher").parameters())
    with torch.no_grad():
        for p in task.encoder.parameters():  # type: ignore[union-attr]
            p.add_(1)
    task.after_step(0, 100)
    after = [*task.get_submodule("teacher").parameters()]
    moved = [float((b - a).abs().max()) for a, b in zip(before, after, strict=True)]
    assert sum(m > 5e-3 for m in moved) == len([*task.encoder.parameters()])  # type: ignore[union-attr]


@pytest.mark.parametrize(("name", "decays"), [("byol", (0.9, 0.95)), ("dino", (0.9, 0.95)), ("moco", (0.9, 0.9))])
def test_the_teacher_moves_by_one_minus_the_decay(name: str, decays: tuple[float, float]) -> None:
    """At the first step and in the middle of the training, where that of BYOL and DINO is halfway to 1."""
    for step, decay in zip((0, 50), decays, strict=True):
        task = make_task(name, momentum=0.9)
        task.set_sizes(32, 8)
        task(batch_of(rng().rand(8, 3, 32, 32)), rng())
        student, teacher = (dict(task.get_submodule(p).named_parameters()) for p in ("encoder", "teacher.encoder"))
        before = {k: p.clone() for k, p in teacher.items()}
        with torch.no_grad():
            for p in student.values():
                p.add_(1)
        task.after_step(step, 100)
        for k, p in teacher.items():
            assert torch.allclose(p - before[k], torch.full_like(p, 1 - decay), atol=1e-4)


@pytest.mark.parametrize("name", ["byol", "dino", "moco"])
def test_the_teacher_has_batch_statistics_of_its_own(name: str) -> None:
    task: Any = make_task(name).train()
    images = rng().rand(8, 3, 32, 32)
    task(batch_of(images), rng())
    norms = [of.encoder.backbone[1] for of in (task, task.teacher)]
    assert all(int(n.num_batches_tracked) == 1 for n in norms)
    with torch.no_grad():
        task.teacher.encoder.backbone[0].weight.mul_(2)
    task(batch_of(images), rng())
    variances = [float((n.running_var - 0.81).mean()) for n in norms]  # 0.81 of them is the initial value, 1
    assert variances[1] > 1.5 * variances[0]
