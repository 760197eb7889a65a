"""The largest batch that fits into memory, measured where one did not."""

from collections.abc import Callable

import torch

from sslrun.base.errors import UserError

NO_MEMORY = ("out of memory", "ALLOC_FAILED", "can't allocate memory")  # of CUDA, its libraries, and of a CPU
REFINED = 3  # bisections after the first batch that fits


def is_exhausted(error: Exception) -> bool:
    """Return whether an error says that memory is full."""
    torch_says = isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or torch_says


def largest_batch(attempt: Callable[[int], object], above: int) -> int:
    """Return the largest number of images, below `above`, with which a step can be taken, within an eighth of it.

    Halves the number until a step succeeds, then bisects.

    Args:
        attempt: take a step with this number of images.

    Returns:
        0 if no step succeeds.
    """

    def fits(n: int) -> bool:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            attempt(n)
        except UserError:  # too few images for the task
            return False
        except (RuntimeError, MemoryError) as error:
            if not is_exhausted(error):
                raise
            return False
        return True

    low, high = above // 2, above
    while low and not fits(low):
        low, high = low // 2, low
    for _ in range(REFINED if low else 0):
        middle = (low + high) // 2
        low, high = (middle, high) if middle > low and fits(middle) else (low, middle)
    return low
