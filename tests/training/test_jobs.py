"""Jobs in worker processes, and in this one."""

import os
import signal
import time
from collections.abc import Iterator

import pytest
import torch

from sslrun.base.errors import UserError
from sslrun.training import jobs
from sslrun.training.jobs import run_jobs, stop


def work(job: int) -> tuple[int, int, int]:
    """Return the job's square, the process, and the number of its threads; fail at 13, and be killed at 99."""
    if job == 13:
        raise UserError("job 13 cannot be done")
    if job == 99:
        os.kill(os.getpid(), signal.SIGKILL)
    return job**2, os.getpid(), torch.get_num_threads()


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(jobs, "cores", lambda: 2)
    yield
    stop()


def gone(process: int) -> bool:
    for _ in range(1000):
        try:
            os.waitpid(process, os.WNOHANG)
            os.kill(process, 0)
        except (ProcessLookupError, ChildProcessError):
            return True
        time.sleep(0.01)
    return False


def test_jobs_run_in_kept_processes_of_one_thread_until_they_are_stopped() -> None:
    first = dict(run_jobs(work, [3, 1, 2], parallel=True))
    assert {i: square for i, (square, _, _) in first.items()} == {0: 9, 1: 1, 2: 4}
    again = dict(run_jobs(work, [5, 6, 7, 8], parallel=True))
    results = [*first.values(), *again.values()]
    processes = {process for _, process, _ in results}
    assert {threads for *_, threads in results} == {1}
    assert os.getpid() not in processes
    assert len(processes) <= 2
    stop()
    assert all(map(gone, processes))
    stop()  # does nothing


def test_a_mistake_in_a_job_and_a_killed_process_are_one_line_and_end_the_processes() -> None:
    with pytest.raises(UserError) as error:
        list(run_jobs(work, [13], parallel=True))
    assert str(error.value) == "job 13 cannot be done"
    assert jobs._pool.cache_info().currsize == 0
    with pytest.raises(
        UserError, match=r"a worker process was killed; out of memory\? device.threads=1 trains one fold"
    ):
        list(run_jobs(work, [99], parallel=True))
    assert jobs._pool.cache_info().currsize == 0


@pytest.mark.parametrize(("parallel", "cores"), [(False, 2), (True, 1)])
def test_jobs_in_this_process_have_one_thread_and_it_has_its_own_again(
    parallel: bool, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "cores", lambda: cores)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert list(run_jobs(work, [3, 1, 2], parallel)) == [
            (i, (square, os.getpid(), 1)) for i, square in enumerate((9, 1, 4))
        ]
        assert torch.get_num_threads() == 3
        with pytest.raises(UserError, match="job 13 cannot be done"):
            list(run_jobs(work, [2, 13], parallel))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert jobs._pool.cache_info().currsize == 0


def test_no_job_is_no_result() -> None:
    assert list(run_jobs(work, [], parallel=False)) == []
