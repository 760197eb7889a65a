"""Worker processes: results in order, and no process left running."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sslrun.base.machine import cores
from sslrun.data import cache, workers
from tests.helpers import slow


def test_results_are_in_order_and_few_tasks_are_pending() -> None:
    drawn = []

    def tasks() -> Iterator[int]:
        for i in range(100):
            drawn.append(i)
            yield i

    with workers.workers(100) as pool:
        results = workers.in_order(pool, lambda i: i * i, tasks())
        assert next(results) == 0
        assert len(drawn) <= 4 * cores()
        assert list(results) == [i * i for i in range(1, 100)]


BIG_CHILD = """
import os, signal, sys, time
from sslrun.base.console import start_logging
from sslrun.data import cache, tree, workers
from sslrun.base.errors import UserError
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # independent of how the tests were started
    start_logging()
    workers.WORTH_PROCESSES = 2
    cache.CHUNK = 1
    files = tree.find_images(sys.argv[1]) * 500
    try:
        cache.decode_all(files, 16, "crop", "rgb")
    except UserError as error:
        sys.exit(f"sslrun: {error}")
"""


def children_of(pid: int) -> list[int]:
    """Return the worker processes of a process."""
    result = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rsplit(")", 1)[1].split()[1])
            command = (stat.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == pid and b"spawn_main" in command:
            result.append(int(stat.parent.name))
    return result


def spread(tasks: int) -> list[int]:
    workers.ensure_start_method()  # as every command does
    with workers.workers(tasks) as pool:
        return list(workers.in_order(pool, abs, range(-tasks, 0)))


@pytest.mark.slow
def test_processes_also_start_in_joblib_workers() -> None:
    """Their start method is unknown to multiprocessing; needed for decoding in a sweep with hydra/launcher=joblib."""
    joblib = pytest.importorskip("joblib")
    n = workers.WORTH_PROCESSES
    result = joblib.Parallel(n_jobs=2)(joblib.delayed(spread)(n) for _ in range(2))
    assert result == [list(range(n, 0, -1))] * 2


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes")
@pytest.mark.parametrize("how", [signal.SIGKILL, *slow([signal.SIGINT, "worker"])])
def test_case_26_no_worker_is_left_behind(photos: Path, how: Any) -> None:
    Path("big.py").write_text(BIG_CHILD)
    process = subprocess.Popen(
        [sys.executable, "big.py", str(photos)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while len(children := children_of(process.pid)) < min(2, cores()):
        assert process.poll() is None
        time.sleep(0.01)
    while not list(cache.cache_folder().glob("*.part/images.npy")):
        time.sleep(0.01)
    time.sleep(0.3)
    if how == "worker":
        os.kill(children[0], signal.SIGKILL)
    elif how == signal.SIGINT:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    else:
        process.kill()
    _, answer = process.communicate(timeout=30)
    assert process.returncode != 0
    for _ in range(300):
        if not any(Path(f"/proc/{c}").exists() for c in children):
            break
        time.sleep(0.01)
    else:
        raise AssertionError("a worker lives on")
    if how == "worker":
        assert answer.splitlines()[-1] == "sslrun: a worker process that was reading images was killed; out of memory?"
    if how == signal.SIGINT:
        assert "spawn" not in answer  # no traceback of a worker
    if how != signal.SIGKILL:
        assert not list(cache.cache_folder().glob("*.part"))


def test_threads_for_few_tasks_one_core_or_a_script_and_processes_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, int]] = []

    def pool(kind: str) -> Any:
        def make(n: int, *_: Any, **__: Any) -> ThreadPoolExecutor:
            made.append((kind, n))
            return ThreadPoolExecutor(n)

        return make

    monkeypatch.setattr(workers, "ThreadPoolExecutor", pool("threads"))
    monkeypatch.setattr(workers, "ProcessPoolExecutor", pool("processes"))
    n, before = workers.WORTH_PROCESSES, signal.getsignal(signal.SIGINT)
    for tasks, processes, n_cores, expected in (
        (n - 1, True, 3, "threads"), (n, True, 3, "processes"), (n, True, 1, "threads"), (n, False, 3, "threads"),
    ):  # fmt: skip
        monkeypatch.setattr(workers, "cores", lambda n_cores=n_cores: n_cores)
        with workers.workers(tasks, processes):
            pass
        assert made.pop() == (expected, n_cores)
        assert signal.getsignal(signal.SIGINT) is before  # restored


def test_on_an_error_pending_tasks_are_cancelled() -> None:
    futures: list[Future[None]] = []

    def work() -> None:
        for _ in range(100):
            if len(futures) == 100 and futures[-1].cancelled():
                return
            time.sleep(0.001)

    def failing() -> None:
        with workers.workers(100) as pool:
            futures.extend(pool.submit(work) for _ in range(100))
            raise ValueError("of the caller")

    with pytest.raises(ValueError, match="of the caller"):
        failing()
    assert sum(f.cancelled() for f in futures) >= 100 - cores()


def test_four_tasks_per_core_are_submitted_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "cores", lambda: 2)
    drawn: list[int] = []
    with workers.workers(30) as pool:
        assert next(workers.in_order(pool, abs, (drawn.append(i) or -i for i in range(30)))) == 0  # type: ignore[func-returns-value]
    assert len(drawn) == 8
