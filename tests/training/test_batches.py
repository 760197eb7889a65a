"""Batches: every image once per epoch, in an order that is reproduced when resuming."""

import os
import signal

import pytest
import torch
from torch import Tensor

from sslrun.base import signals
from sslrun.training.batches import Batches
from tests.helpers import CPU, MeanTask, metric_rows, ramp, train


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize(("n", "size"), [(27, 8), (25, 8), (24, 8), (5, 8), (9, 8), (8, 8), (15, 2)])
def test_every_batch_has_one_size_and_each_epoch_of_the_stream_every_image_once(
    n: int, size: int, balanced: bool
) -> None:
    labels, total = torch.arange(n) // 2, 3 * -(-n // size) + 1
    batches = list(Batches(ramp(n), labels, size, total, 5, CPU, balanced).after(0))
    assert {len(s.batch["images"]) for s in batches} == {s.images for s in batches} == {min(n, size)}
    stream = torch.cat([(s.batch["images"][:, 0, 0, 0] * 255).round().long() for s in batches])
    epochs = [e.tolist() for e in stream.split(n) if len(e) == n]
    assert len(epochs) >= 3
    assert n < 8 or epochs[0] != epochs[1] != epochs[2]
    for epoch in epochs:
        if balanced:
            of_classes = (torch.tensor(epoch) // 2).bincount()
            assert of_classes.max() - of_classes.min() <= 1
        else:
            assert sorted(epoch) == list(range(n))


def test_a_training_of_some_epochs_ends_with_the_step_that_completes_the_last() -> None:
    model = MeanTask()
    train(model, ramp(27), "a", epochs=3, steps=None, log_every=3)
    assert [len(s) for s in model.seen] == [8] * 11  # 81 images, and 7 of the fourth epoch
    rows = [r for r in metric_rows("a") if "epoch" in r]
    assert {r["step"]: r["epoch"] for r in rows}.items() >= {3: 0.888889, 9: 2.666667, 11: 3.259259}.items()


@pytest.mark.parametrize("done", [0, 1, 3, 4, 7, 9, 10])
@pytest.mark.parametrize("balanced", [False, True])
def test_batches_after_some_steps_equal_those_of_an_uninterrupted_training(done: int, balanced: bool) -> None:
    """Rows, labels and random numbers, in batches of 8 of 27 images. Only the needed batches are gathered."""
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
        return [
            (s.step, (s.batch["images"][:, 0, 0, 0] * 255).round().tolist(), s.batch["labels"].tolist(),
             float(s.rng.rand()), s.images) for s in batches.after(after)
        ]  # fmt: skip

    everything = seen(0)
    assert [s[0] for s in everything] == list(range(10))
    assert all([min(r, 3 if balanced else r) for r in s[1]] == s[2] and len(s[1]) == s[4] for s in everything)
    first = [k for s in everything for k in s[2]][:27]
    assert sorted(first.count(c) for c in range(4)) == ([6, 7, 7, 7] if balanced else [1] * 4)
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
