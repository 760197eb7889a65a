"""SLURM: a job that has to give back its node is requeued, and then resumes the run that it had started."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sslrun.base import signals
from sslrun.base.console import log
from sslrun.base.files import write_text
from sslrun.base.machine import is_first
from sslrun.run.find import OUTPUTS

JOB = "slurm_job"  # entry of a run's summary
SWEEP_JOB = ".slurm_job"  # in the folder of a sweep, whose own jobs may be others, of submitit


def job() -> str | None:
    """Return the ID of the SLURM job of this process, `JOB_TASK` in an array; None outside of SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def in_submitit() -> bool:
    """Return whether submitit has started this process."""
    return "SUBMITIT_EXECUTOR" in os.environ


def requeue(number: int) -> None:
    """After a signal of the cluster, and after the run is saved, requeue the job: submitit's way, or SLURM's.

    SIGTERM requeues nothing: `scancel` sends it, too, and a SLURM that preempts by requeueing does so itself.

    Raises:
        SystemExit: submitit has requeued it.
    """
    if number not in signals.OF_CLUSTER:
        return
    handler = signals.handler_outside(number)
    if handler is not None:
        try:
            handler(number, None)
        except Exception as error:  # submitit's own, for example after too many time limits
            log.warning("submitit does not start this job again: %s", error)
    elif (own := job()) and is_first():
        command = ["scontrol", "requeue", own]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            log.warning("%s failed: %s; submit the job again", " ".join(command), error)
            return
        if done.returncode:
            log.warning("%s failed: %s; submit the job again", " ".join(command), done.stderr.strip())
        else:
            log.info("SLURM job %s is requeued, and will resume this run", own)


@contextmanager
def requeued_on_signals() -> Iterator[None]:
    """Handle signals that come outside of a job, such as between two jobs of a sweep.

    Raises:
        SystemExit: there was one.
    """
    with signals.handled():
        try:
            yield
        except signals.Stopped as stop:
            requeue(stop.number)
            raise SystemExit(128 + stop.number) from None


def is_requeued() -> bool:
    """Return whether this is a SLURM job that runs once more."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0


def is_ours(summary: Mapping[str, Any]) -> bool:
    """Return whether a run was started by this SLURM job."""
    return summary.get(JOB) is not None and summary[JOB] == job()


def mark_sweep(sweep: Path) -> None:
    """Write into the folder of a sweep by which SLURM job it was started."""
    if own := job():
        sweep.mkdir(parents=True, exist_ok=True)
        write_text(sweep / SWEEP_JOB, own)


def our_sweeps(command: str) -> list[Path]:
    """Return the folders of the sweeps that this SLURM job has started, oldest first."""
    return sorted(p.parent for p in OUTPUTS.glob(f"{command}/*/{SWEEP_JOB}") if p.read_text() == job())
