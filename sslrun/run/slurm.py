"""SLURM: a job that has to give back its node is requeued, and then resumes the run that it had started."""

import os
import subprocess
from collections.abc import Mapping
from typing import Any

from sslrun.base import signals
from sslrun.base.console import log
from sslrun.base.machine import is_first

JOB = "slurm_job"  # entry of a run's summary


def job() -> str | None:
    """Return the ID of the SLURM job of this process, `JOB_TASK` in an array; None outside of SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def requeue(number: int) -> None:
    """After a signal of the cluster, and after the run is saved, requeue the job: submitit's way, or SLURM's.

    Raises:
        SystemExit: submitit has requeued it.
    """
    if number not in signals.OF_CLUSTER:
        return
    handler = signals.handler_outside(number)
    if handler is not None:
        handler(number, None)
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


def is_requeued() -> bool:
    """Return whether this is a SLURM job that runs once more."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0


def is_ours(summary: Mapping[str, Any]) -> bool:
    """Return whether a run was started by this SLURM job."""
    return summary.get(JOB) is not None and summary[JOB] == job()
