"""All cores at once. Worker processes import this file and what they are to do, so it imports little itself."""

import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

WORTH_PROCESSES = 2000  # tasks; it takes a second to start processes


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def workers(tasks: int) -> Iterator[Executor]:
    """Open a pool of all cores: processes for many tasks, since Python does one thing at a time, threads for few.

    Raises:
        UserError: a process was killed.
    """
    if tasks < WORTH_PROCESSES or cores() == 1:
        with ThreadPoolExecutor(cores()) as pool:
            yield pool
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cores(), context, initializer=_become_a_worker) as pool:
        try:
            yield pool
        except BrokenProcessPool:
            from sslrun.errors import UserError

            raise UserError("a process that was reading pictures was killed: is the memory full?") from None


def _become_a_worker() -> None:
    """Leave Ctrl-C to the parent, and end when the parent ends, however it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
