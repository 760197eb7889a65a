"""Entries of the cache, which are kept between runs."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from sslrun.base.console import log
from sslrun.base.locks import alone

T = TypeVar("T")


@dataclass(frozen=True)
class Cached(Generic[T]):
    """One entry of the cache; a damaged entry counts as missing.

    Attributes:
        path: a file or a folder; the lock file is next to it.
        work: what making the entry does, for the message to another process that waits.
        load: reads the entry, or returns None if it must be remade; may raise anything.
        damaged: warning with two placeholders, the path and the error; None ignores a damaged entry silently.
    """

    path: Path
    work: str
    load: Callable[[Path], T | None]
    damaged: str | None = None

    def read(self) -> T | None:
        """Return the entry, or None if it is missing or damaged."""
        if not os.path.exists(self.path):
            return None
        try:
            return self.load(self.path)
        except Exception as error:  # libraries raise anything on damaged files
            if self.damaged:
                log.warning(self.damaged, self.path, error)
            return None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Create the folder and hold the entry's lock within the context.

        Raises:
            OSError: the folder or the lock file cannot be created.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with alone(self.path.with_suffix(".lock"), self.work):
            yield
