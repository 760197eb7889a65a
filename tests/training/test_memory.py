"""Where a step does not fit into memory, the largest batch that fits is measured and named."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sslrun.augment import Rng, generator
from sslrun.base.errors import UserError, is_exhausted
from sslrun.run import checkpoint
from sslrun.training.batches import Step
from sslrun.training.loop import step_within_memory
from sslrun.training.memory import largest_batch
from sslrun.training.settings import SMALLEST_BATCH
from tests.helpers import MeanTask, cpu, ramp, train

FULL = "CUDA out of memory. Tried to allocate 2.00 GiB"


class Large(MeanTask):
    """A task for which there is memory for some images, from a step on."""

    def __init__(self, holds: int = 21, full_at: int = 0) -> None:
        super().__init__()
        self.holds, self.full_at = holds, full_at

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        if len(self.seen) >= self.full_at and len(batch["images"]) > self.holds:
            raise torch.OutOfMemoryError(FULL)
        return super().forward(batch, rng)


@pytest.mark.parametrize("above", [2, 3, 8, 100, 512])
@pytest.mark.parametrize("holds", [0, 1, 3, 4, 7, 63, 64, 100, 511])
def test_the_largest_batch_is_found_within_an_eighth(above: int, holds: int) -> None:
    tried = []

    def attempt(n: int) -> None:
        tried.append(n)
        if n > holds:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")

    found, best = largest_batch(attempt, above), min(holds, above - 1)
    assert all(SMALLEST_BATCH <= n < above for n in tried)
    assert len(tried) <= above.bit_length() + 3
    if best < SMALLEST_BATCH:
        assert found == 0
    elif found == 0:  # 3 of 7, for example: halving goes past the few sizes that fit
        assert above // 2 < SMALLEST_BATCH or best < 2 * SMALLEST_BATCH
    else:
        assert best * 7 / 8 - 1 <= found <= best


def test_other_errors_are_not_taken_for_full_memory() -> None:
    def attempt(n: int) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        largest_batch(attempt, 8)
    for text in (FULL, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling", "can't allocate memory: you tried"):
        assert is_exhausted(RuntimeError(text))
        assert not is_exhausted(ValueError(text))
    assert is_exhausted(MemoryError())
    assert not is_exhausted(RuntimeError("shapes differ"))


@pytest.mark.parametrize("full_at", [0, 2])
def test_a_training_that_does_not_fit_names_the_largest_batch(full_at: int) -> None:
    with pytest.raises(UserError, match="out of memory with batches of 64 images: ") as caught:
        train(Large(full_at=full_at), ramp(200), "run", batch_size=64, keep_every=1)
    match = re.search(r": (\d+) fit, as measured: train.batch_size=\1$", str(caught.value))
    assert match
    assert 18 <= int(match[1]) <= 21
    assert checkpoint.load(Path("run/last.pt"))["step"] == full_at  # what was measured later is not in it


def test_where_no_batch_fits_the_message_says_so() -> None:
    with pytest.raises(UserError, match=r"out of memory with batches of 16 images: use a smaller network$"):
        train(Large(holds=SMALLEST_BATCH - 1), ramp(16), "run", batch_size=16)


def test_the_state_of_the_optimizer_needs_memory_too() -> None:
    """It does not exist yet in the first step; and a step that failed in the optimizer has made a part of it."""

    class Limited(MeanTask):
        def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
            if len(batch["images"]) + 10 * len(optimizer.state) > 40:
                raise RuntimeError(FULL)
            return super().forward(batch, rng)

    task: Any = Limited()
    optimizer = torch.optim.AdamW(task.parameters(), 0.1, fused=True)
    optimizer.state[task.weight]["step"] = torch.tensor(1.0)
    images = torch.rand(64, 3, 8, 8)
    step = Step(0, {"images": images, "rows": torch.arange(64)}, Rng(generator(0)), 64)
    with pytest.raises(UserError) as caught:
        step_within_memory(task, step, 10, optimizer, cpu(precision="fp32"), None)
    match = re.search(r"batch_size=(\d+)$", str(caught.value))
    assert match
    assert 27 <= int(match[1]) <= 30
