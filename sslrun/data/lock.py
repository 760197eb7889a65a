"""The cache folder, and one process at a time in it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sslrun.console import log


def home() -> Path:
    """Return the cache folder: `SSLRUN_CACHE`, or `sslrun` below `XDG_CACHE_HOME` or `~/.cache`."""
    own = os.environ.get("SSLRUN_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "sslrun")


@contextmanager
def alone(path: Path, work: str) -> Iterator[None]:
    """Hold a lock file while inside; wait for another process that holds it.

    Args:
        path: of the lock file, which stays.
        work: what is done inside, for the message.

    Raises:
        OSError: the lock file cannot be made.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("Waiting for another process that is %s", work)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
