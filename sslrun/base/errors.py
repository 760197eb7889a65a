"""The exception for mistakes that users can correct, and one-line descriptions of errors in their own code."""

import sysconfig
import traceback
from pathlib import Path

from hydra.errors import CompactHydraException

from sslrun.base.paths import PACKAGE, shown


class UserError(CompactHydraException):
    """A mistake that the user can correct: reported without a traceback, exit code 1."""


NO_MEMORY = ("out of memory", "ALLOC_FAILED", "can't allocate memory")  # of CUDA, its libraries, and of a CPU


def is_exhausted(error: Exception) -> bool:
    """Return whether an error says that memory is full: Python's, or torch's, which is a RuntimeError."""
    torch_says = isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)
    return isinstance(error, MemoryError) or torch_says


def described(error: BaseException) -> str:
    """Return an error's type, the first line of its message, and the line of the user's own code that raised it.

    Returns:
        Such as `KeyError: 'labels' (flips.py:23)`; without a place where no code of the user's was running.
    """
    lines = str(error).splitlines()
    place = _place(error)
    return f"{type(error).__name__}{f': {lines[0]}' if lines else ''}{f' ({place})' if place else ''}"


def _place(error: BaseException) -> str:
    """Return file and line of the last frame that is in neither sslrun, nor Python's library, nor a package."""
    if isinstance(error, SyntaxError):
        return ""  # its message names the file and the line
    others = tuple(sysconfig.get_path(p) for p in ("stdlib", "platstdlib", "purelib", "platlib"))
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(("<", f"{PACKAGE}/", *others))]
    return f"{shown(Path(own[-1].filename))}:{own[-1].lineno}" if own else ""
