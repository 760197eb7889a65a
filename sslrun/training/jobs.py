"""Small jobs over the cores: worker processes with one thread each, so that results do not depend on the cores."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch

from sslrun.base.errors import UserError
from sslrun.base.machine import cores
from sslrun.data.workers import ignore_ctrl_c, initialize_worker

J = TypeVar("J")
R = TypeVar("R")


def start() -> None:
    """Start the worker processes, which takes some seconds, in the background."""
    with ignore_ctrl_c():
        for _ in range(cores()):
            _pool().submit(int)


def run_jobs(function: Callable[[J], R], jobs: Sequence[J], parallel: bool) -> Iterator[tuple[int, R]]:
    """Yield the index and the result of each job as it ends.

    Args:
        function: a function of a module, since other processes import it.
        parallel: use all cores; otherwise this process runs the jobs, with one thread, too.

    Raises:
        UserError: a worker process was killed.
    """
    if not parallel or cores() == 1:
        with one_torch_thread():
            yield from ((i, function(job)) for i, job in enumerate(jobs))
        return
    start()
    futures = {_pool().submit(function, job): i for i, job in enumerate(jobs)}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        _pool.cache_clear()
        raise UserError(
            "a worker process was killed; out of memory? device.threads=1 trains one fold at a time"
        ) from None
    except BaseException:
        stop()
        raise


def in_order(function: Callable[[J], R], jobs: Sequence[J], parallel: bool) -> list[R]:
    """Return the results of all jobs, in their order; see `run_jobs`."""
    results = dict(run_jobs(function, jobs, parallel))
    return [results[i] for i in range(len(jobs))]


def stop() -> None:
    """End the worker processes, without waiting for their jobs."""
    if _pool.cache_info().currsize:
        processes = list((_pool()._processes or {}).values())
        _pool().shutdown(wait=False, cancel_futures=True)
        _pool.cache_clear()
        for process in processes:
            process.terminate()


@contextmanager
def stopped_on_error() -> Iterator[None]:
    """End the worker processes on an error or signal within the context."""
    try:
        yield
    except BaseException:
        stop()
        raise


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Use one thread within the context."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@cache
def _pool() -> ProcessPoolExecutor:
    """Return the pool of this process; it is kept, since a sweep or study has many runs."""
    return ProcessPoolExecutor(cores(), multiprocessing.get_context("spawn"), initializer=_initialize)


def _initialize() -> None:
    initialize_worker()
    torch.set_num_threads(1)
