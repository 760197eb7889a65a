"""What is kept between runs in the cache."""

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
    """One entry of the cache; what is damaged counts as missing.

    Attributes:
        path: of a file or a folder; its lock lies beside it.
        work: how it is made, for the message to another process that waits.
        load: reads what lies at the path, or returns None if it is to be made anew; it may raise anything.
        damaged: a warning of the path and the error; with None a damaged entry is passed over in silence.
    """

    path: Path
    work: str
    load: Callable[[Path], T | None]
    damaged: str | None = None

    def read(self) -> T | None:
        """Return the entry, None if there is none that is whole."""
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
        """Make the folder, and hold the entry's lock while inside.

        Raises:
            OSError: the folder or the lock cannot be made.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with alone(self.path.with_suffix(".lock"), self.work):
            yield
