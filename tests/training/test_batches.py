"""Batches: every image once per epoch, in an order that is reproduced when resuming."""

import os
import signal

import pytest
import torch
from torch import Tensor

from sslrun.base import signals
from sslrun.training.batches import Batches
from tests.helpers import CPU, MeanTask, ramp, train


def test_an_epoch_has_every_image_once_in_batches_of_nearly_equal_size() -> None:
    model = MeanTask()
    train(model, ramp(27), "a", epochs=2, steps=None)
    assert [len(s) for s in model.seen] == [7, 7, 7, 6] * 2
    for epoch in (model.seen[:4], model.seen[4:]):
        assert sorted(torch.cat(epoch).tolist()) == list(range(27))
    assert torch.cat(model.seen[:4]).tolist() != torch.cat(model.seen[4:]).tolist()


@pytest.mark.parametrize("done", [0, 1, 3, 4, 7, 9, 10])
@pytest.mark.parametrize("balanced", [False, True])
def test_batches_after_some_steps_equal_those_of_an_uninterrupted_training(done: int, balanced: bool) -> None:
    """Rows, labels and random numbers, with 4 steps an epoch. Only the needed batches are gathered."""
    images, gathered = ramp(27), 0
    labels = torch.arange(27).clamp(max=3) if balanced else torch.arange(27)

    class Counted:
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, rows: Tensor) -> Tensor:
            nonlocal gathered
            gathered += 1
            return images[rows]

    def seen(after: int) -> list[tuple[int, list[int], list[int], float, int]]:
        batches = Batches(Counted(), labels, 8, 10, 5, CPU, balanced)  # type: ignore[arg-type]
        assert batches.per_epoch == 4
        return [
            (s.step, (s.batch["images"][:, 0, 0, 0] * 255).round().tolist(), s.batch["labels"].tolist(),
             float(s.rng.rand()), s.images) for s in batches.after(after)
        ]  # fmt: skip

    everything = seen(0)
    assert [s[0] for s in everything] == list(range(10))
    assert all([min(r, 3 if balanced else r) for r in s[1]] == s[2] and len(s[1]) == s[4] for s in everything)
    assert sorted([k for s in everything[:4] for k in s[2]].count(c) for c in range(4)) == [
        *([6, 7, 7, 7] if balanced else [1] * 4)
    ]
    assert len({s[3] for s in everything}) == 10
    gathered = 0
    assert seen(done) == everything[done:]
    assert gathered == 10 - done


def test_case_4_after_resuming_the_second_epoch_has_a_new_order() -> None:
    class Stops(MeanTask):
        def after_step(self, step: int, total: int) -> None:
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    first, second = Stops(), MeanTask()
    with signals.handled(), pytest.raises(signals.Stopped):
        train(first, ramp(32), "a", steps=8)
    train(second, ramp(32), "a", resumed=True, steps=8)
    orders = [torch.cat(m.seen).tolist() for m in (first, second)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(32))
    assert orders[0] != orders[1]
