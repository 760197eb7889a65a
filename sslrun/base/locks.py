"""One process at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sslrun.base.console import log
from sslrun.base.errors import UserError


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


def locked(directory: Path) -> FileLock:
    """Hold a lock on the directory of a run or a sweep as long as this process lives, however it ends.

    Raises:
        UserError: another process holds it.
    """
    lock = FileLock(directory / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{directory} is being written by another process: wait for it, or stop it") from None
    return lock
