"""One process at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sslrun.console import log


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
