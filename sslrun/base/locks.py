"""Locks between processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sslrun.base.console import log
from sslrun.base.errors import UserError


@contextmanager
def alone(path: Path, work: str) -> Iterator[None]:
    """Hold a lock file within the context; wait if another process holds it.

    Args:
        path: the lock file, which is not deleted.
        work: what is done under the lock, for the message to a process that waits.

    Raises:
        OSError: the lock file cannot be created.
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
    """Lock the directory of a run or a sweep until this process ends, even if it is killed.

    Raises:
        UserError: another process holds it.
    """
    lock = FileLock(directory / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{directory} is in use by another process: wait for it to finish, or stop it") from None
    return lock
