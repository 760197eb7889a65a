"""Worker pools on all cores. Worker processes import this module, so it imports little itself."""

import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from sslrun.base.machine import cores

T = TypeVar("T")
R = TypeVar("R")
WORTH_PROCESSES = 2000  # tasks; starting processes takes about a second


@contextmanager
def workers(tasks: int, processes: bool = True) -> Iterator[Executor]:
    """Open a pool with one worker per core: processes for many tasks, because of the GIL, threads for few.

    Args:
        tasks: number of tasks.
        processes: False where a new process would import, and so run again, the user's script.

    Raises:
        UserError: a worker process was killed.
    """
    if tasks < WORTH_PROCESSES or cores() == 1 or not processes:
        with ThreadPoolExecutor(cores()) as threads, _cancel_on_error(threads):
            yield threads
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cores(), context, initializer=initialize_worker) as pool, _cancel_on_error(pool):
        with ignore_ctrl_c():
            for _ in range(cores()):
                pool.submit(int)  # starts a process
        try:
            yield pool
        except BrokenProcessPool:
            from sslrun.base.errors import UserError

            raise UserError("a worker process that was reading images was killed; out of memory?") from None


def ensure_start_method() -> None:
    """Set the start method of processes to `spawn` if it is unknown, as it is in joblib's own worker processes."""
    if multiprocessing.get_start_method() not in multiprocessing.get_all_start_methods():
        multiprocessing.set_start_method("spawn", force=True)


@contextmanager
def _cancel_on_error(pool: Executor) -> Iterator[None]:
    """Cancel pending tasks on an error or Ctrl-C."""
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def in_order(pool: Executor, work: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
    """Yield the results in the order of the tasks, with at most 4 tasks per core submitted at a time."""
    pending: deque[Future[R]] = deque()
    for task in tasks:
        pending.append(pool.submit(work, task))
        if len(pending) >= 4 * cores():
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


@contextmanager
def ignore_ctrl_c() -> Iterator[None]:
    """Ignore Ctrl-C while processes are started; they inherit this, and the parent stops them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def initialize_worker() -> None:
    """Silence Pillow's warnings, and exit when the parent exits, even if it is killed."""
    from sslrun.data.decode import ignore_pillow_warnings

    ignore_pillow_warnings()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def exit_with_parent() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
