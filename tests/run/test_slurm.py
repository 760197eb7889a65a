"""SLURM: a job that gets SIGUSR1 saves and is requeued, and the same command then resumes its run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sslrun.run import slurm
from tests.helpers import (  # fmt: skip
    OFTEN,
    PRETRAIN,
    Cli,
    ended,
    in_steps,
    logged,
    only_run,
    run_forked,
    runs,
    same,
    start,
    summary,
    wait_for,
    whole,
)

LONG = (*PRETRAIN, "train.epochs=null", "train.steps=1000", "train.evaluations=1", *OFTEN)


@pytest.fixture(autouse=True)
def _job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Work in SLURM job 7, with an `scontrol` that writes down what it gets."""
    for name in list(os.environ):
        if name.startswith("SLURM_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin/scontrol"
    refusing = f"test ! -e {tmp_path}/refuses || {{ echo no >&2; false; }}"
    tool.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/requests\n{refusing}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")


def stopped(number: int, *command: str) -> str:
    """Send a signal to a command while it trains; return what it printed."""
    process = start(*command)
    wait_for(process, lambda: in_steps("pretrain/*"))
    os.kill(process.pid or 0, number)
    assert ended(process) == 128 + number
    return Path("output").read_text()


def test_the_id_of_an_array_names_its_task(monkeypatch: pytest.MonkeyPatch) -> None:
    assert slurm.job() == "7"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    assert slurm.job() == "5_0"
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID")
    monkeypatch.delenv("SLURM_JOB_ID")
    assert slurm.job() is None
    assert not slurm.is_requeued()
    assert not slurm.is_ours({})


@pytest.mark.slow
def test_a_preempted_job_is_requeued_and_ends_with_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    run_forked(*LONG, "hydra.run.dir=whole")
    printed = stopped(signal.SIGUSR1, *LONG)
    assert "SIGUSR1: finishing the step, saving" in printed
    assert "SLURM job 7 is requeued, and will resume this run" in printed
    assert Path("requests").read_text() == "requeue 7\n"
    run = only_run()
    step = logged(run)[-1]["step"]
    assert (summary(run)["status"], summary(run)["slurm_job"]) == ("interrupted", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    again = run_forked(*LONG)
    assert f"SLURM job 7 was requeued: resuming {run}" in again
    assert step < 1000
    assert only_run() == run
    assert same(whole(run), whole(Path("whole")))
    assert f"Already finished: {run}" in run_forked(*LONG)
    run_forked(*LONG, "seed=1")  # another command of the job is a run of its own
    assert len(runs("pretrain")) == 2


@pytest.mark.slow
def test_a_job_that_cannot_be_requeued_says_how_to_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("refuses").touch()
    printed = stopped(signal.SIGUSR1, *LONG)
    assert f"Resume with: sslrun pretrain resume={only_run()}" in printed
    assert "scontrol requeue 7 failed: no; submit the job again" in printed


@pytest.mark.slow
def test_other_signals_and_other_places_requeue_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(signal.SIGTERM, *LONG)
    assert not Path("requests").exists()
    Path("outputs").rename("earlier")
    monkeypatch.delenv("SLURM_JOB_ID")
    assert "Resume with: sslrun pretrain resume=" in stopped(signal.SIGUSR1, *LONG)
    assert not Path("requests").exists()


@pytest.mark.slow
def test_a_sweep_in_a_job_is_resumed_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = ("pretrain", "-m", *LONG[1:], "seed=0,1")
    process = start(*sweep)
    wait_for(process, lambda: len(list(Path("outputs").glob("pretrain/*/1/last.pt"))) == 1)
    os.kill(process.pid or 0, signal.SIGUSR1)
    assert ended(process) == 128 + signal.SIGUSR1
    assert Path("requests").read_text() == "requeue 7\n"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    again = run_forked(*sweep)
    assert "Already finished" in again
    assert "Resuming after step" in again
    assert [summary(r)["status"] for r in runs("pretrain")] == ["finished"] * 2


@pytest.mark.slow
def test_a_sweep_is_found_again_if_its_jobs_are_those_of_submitit(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    sweep = ("pretrain", "-m", *PRETRAIN[1:], "train.steps=2", "seed=0,1")
    assert cli(*sweep).code == 0
    for run in runs("pretrain"):
        path = run / "summary.json"
        assert '"slurm_job": "7"' in path.read_text()
        path.write_text(path.read_text().replace('"slurm_job": "7"', '"slurm_job": "8"'))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    again = cli(*sweep)
    assert again.code == 0
    assert again.err.count("Already finished") == 2
    assert len(runs("pretrain")) == 2
    assert cli(*sweep[:-1], "seed=0,2").code == 0  # another sweep begins anew
    assert len(runs("pretrain")) == 4


@pytest.mark.slow
def test_torchrun_passes_the_signal_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM signals every process of the job, and torchrun the others once more; see docs/scaling.md."""
    for name in ("TORCHELASTIC_SIGNALS_TO_HANDLE", "PET_SIGNALS_TO_HANDLE"):
        monkeypatch.setenv(name, "SIGTERM,SIGINT,SIGUSR1")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "sslrun", *LONG]
    with Path("output").open("w") as output:
        job = subprocess.Popen(command, stderr=output, start_new_session=True)
    until = time.monotonic() + 200
    while not in_steps("pretrain/*"):
        assert job.poll() is None, Path("output").read_text()
        assert time.monotonic() < until
        time.sleep(0.05)
    os.killpg(job.pid, signal.SIGUSR1)
    assert job.wait(100) != 0
    printed = Path("output").read_text()
    assert printed.count("Stopped by SIGUSR1") == 1, printed
    assert Path("requests").read_text() == "requeue 7\n"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert f"SLURM job 7 was requeued: resuming {only_run()}" in run_forked(*LONG)
    assert summary(only_run())["status"] == "finished"


def test_a_job_that_was_requeued_before_its_first_checkpoint_begins_anew(
    monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    assert cli(*PRETRAIN, "train.steps=2").code == 0
    (first,) = runs("pretrain")
    for path in first.glob("*.pt"):
        path.unlink()
    text = (first / "summary.json").read_text()
    (first / "summary.json").write_text(text.replace('"status": "finished"', '"status": "running"'))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert cli(*PRETRAIN, "train.steps=2").code == 0
    assert len(runs("pretrain")) == 2
