"""All cores at once. Worker processes import this file and what they are to do, so it imports little itself."""

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
WORTH_PROCESSES = 2000  # tasks; it takes a second to start processes


@contextmanager
def workers(tasks: int, processes: bool = True) -> Iterator[Executor]:
    """Open a pool of all cores: processes for many tasks, since Python does one thing at a time, threads for few.

    Args:
        tasks: how many there are.
        processes: False where a process that is started would run a user's script anew, which it imports.

    Raises:
        UserError: a process was killed.
    """
    if tasks < WORTH_PROCESSES or cores() == 1 or not processes:
        with ThreadPoolExecutor(cores()) as threads, _cancelled(threads):
            yield threads
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cores(), context, initializer=_become_a_worker) as pool, _cancelled(pool):
        with _ctrl_c_ignored():
            for _ in range(cores()):
                pool.submit(int)  # which starts one
        try:
            yield pool
        except BrokenProcessPool:
            from sslrun.base.errors import UserError

            raise UserError("a process that was reading pictures was killed: is the memory full?") from None


def name_start_method() -> None:
    """Have this process start others as they know how to; joblib's own processes name a way that others do not."""
    if multiprocessing.get_start_method() not in multiprocessing.get_all_start_methods():
        multiprocessing.set_start_method("spawn", force=True)


@contextmanager
def _cancelled(pool: Executor) -> Iterator[None]:
    """Leave undone what has not begun when something goes wrong, such as Ctrl-C."""
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def in_order(pool: Executor, work: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
    """Yield the results of all tasks in their order, with a few for each core under way at any time."""
    under_way: deque[Future[R]] = deque()
    for task in tasks:
        under_way.append(pool.submit(work, task))
        if len(under_way) >= 4 * cores():
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()


@contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    """Ignore Ctrl-C, as processes that are started meanwhile then do for good: the parent ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _become_a_worker() -> None:
    """End when the parent ends, however it does; say as little of strange files as it does."""
    from sslrun.data.decode import ignore_pillow_warnings

    ignore_pillow_warnings()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
