"""The largest batch that fits into memory, measured where one did not."""

from collections.abc import Callable

import torch

from sslrun.base.errors import is_exhausted
from sslrun.training.settings import SMALLEST_BATCH

REFINED = 3  # bisections after the first batch that fits


def largest_batch(attempt: Callable[[int], object], above: int) -> int:
    """Return the largest number of images, below `above`, that can be trained on, within an eighth of it.

    Halves the number until an attempt succeeds, then bisects.

    Args:
        attempt: train on this number of images, at least `SMALLEST_BATCH`.

    Returns:
        0 if no attempt succeeds.
    """

    def fits(n: int) -> bool:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            attempt(n)
        except (RuntimeError, MemoryError) as error:
            if not is_exhausted(error):
                raise
            return False
        return True

    low, high = above // 2, above
    while low >= SMALLEST_BATCH and not fits(low):
        low, high = low // 2, low
    if low < SMALLEST_BATCH:
        return 0
    for _ in range(REFINED):
        middle = (low + high) // 2
        low, high = (middle, high) if middle > low and fits(middle) else (low, middle)
    return low
