"""Where a step does not fit into memory, the largest batch that fits is measured and named."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sslrun.augment import Rng
from sslrun.base.errors import UserError
from sslrun.training.memory import is_exhausted, largest_batch
from tests.helpers import MeanTask, ramp, train


class Large(MeanTask):
    """A task for which there is memory for 21 images, from a step on."""

    holds, full_at = 21, 0

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        if len(self.seen) >= self.full_at and len(batch["images"]) > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().forward(batch, rng)


@pytest.mark.parametrize("above", [2, 3, 8, 100, 512])
@pytest.mark.parametrize("holds", [0, 1, 2, 7, 63, 64, 100, 511])
def test_the_largest_batch_is_found_within_an_eighth(above: int, holds: int) -> None:
    tried = []

    def attempt(n: int) -> None:
        tried.append(n)
        if n > holds:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")

    found = largest_batch(attempt, above)
    best = min(holds, above - 1)
    assert best * 7 / 8 - 1 <= found <= best
    assert all(0 < n < above for n in tried)
    assert len(tried) <= above.bit_length() + 3


def test_other_errors_are_not_taken_for_full_memory() -> None:
    def attempt(n: int) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        largest_batch(attempt, 8)
    assert is_exhausted(torch.OutOfMemoryError())
    assert is_exhausted(MemoryError())
    assert not is_exhausted(ValueError("out of memory"))


@pytest.mark.parametrize("full_at", [0, 2])
def test_a_training_that_does_not_fit_names_the_largest_batch(full_at: int) -> None:
    task = Large()
    task.full_at = full_at
    with pytest.raises(UserError, match="out of memory with batches of 64 images") as caught:
        train(task, ramp(200), "run", batch_size=64)
    match = re.search(r"batches of (\d+) fit, as measured: train.batch_size=\1", str(caught.value))
    assert match
    assert 18 <= int(match[1]) <= 21
    if full_at:
        assert Path("run/last.pt").exists()


def test_where_no_batch_fits_the_message_says_so() -> None:
    task = Large()
    task.holds = 0
    with pytest.raises(UserError, match="out of memory with batches of 16 images: use a smaller network"):
        train(task, ramp(16), "run", batch_size=16)
