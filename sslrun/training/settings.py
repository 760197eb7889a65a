"""How long a training is, and how its learning rate goes."""

import math

from sslrun.base.console import log
from sslrun.base.errors import UserError

SMALLEST_BATCH = 4  # of pretraining: batch norm and contrastive losses compare the pictures of a batch


def batches_per_epoch(n: int, batch_size: int) -> int:
    """Return how many batches of nearly equal size, none above `batch_size`, n pictures make."""
    return math.ceil(n / batch_size)


def total_steps(n: int, epochs: int | None, steps: int | None, batch_size: int, quiet: bool = False) -> int:
    """Return the length of a training in steps: `epochs` or `steps`, whichever ends first.

    Raises:
        UserError: neither is given.
    """
    by_epochs = epochs * batches_per_epoch(n, batch_size) if epochs else None
    given = [s for s in (by_epochs, steps) if s is not None]
    if not given:
        raise UserError("say how long to train: train.epochs=... or train.steps=...")
    if len(given) == 2 and not quiet:
        which = "train.steps" if steps == min(given) else "train.epochs"
        log.info("train.epochs=%s is %s steps, train.steps=%s: %s ends first.", epochs, by_epochs, steps, which)
    return min(given)


def learning_rate_at(step: int, total: int, warmup: int) -> float:
    """Return the multiple of the learning rate: linear warm-up, then half a cosine down to 0."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
