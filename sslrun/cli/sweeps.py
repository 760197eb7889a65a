"""Sweeps: over the finished jobs of an earlier one, into a folder of their own, and their table at the end."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.cli.invocation import Invocation
from sslrun.config.grammar import quoted
from sslrun.runs.find import is_finished, job_order


def refuse_used_folder(invocation: Invocation) -> None:
    """Refuse a sweep into the folder of an earlier one, which would mix their jobs."""
    for value in invocation.overrides:
        key, _, text = value.partition("=")
        folder = Path(text.strip("'\""))
        if key == "hydra.sweep.dir" and folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"{folder} is not empty: a sweep needs a folder of its own")


def of_finished_jobs(invocation: Invocation) -> Invocation:
    """Turn `run=SWEEP` into a sweep over its finished jobs."""
    values = invocation.overrides
    for i, value in enumerate(values):
        key, _, text = value.partition("=")
        folder = Path(text)
        if key == "run" and folder.is_dir() and not (folder / "summary.json").exists():
            every = [p.parent for p in folder.glob("*/config.yaml")]
            jobs = [p for p in every if is_finished(p)]
            left_out = sorted(p.name for p in every if p not in jobs)
            if left_out:
                log.warning("%d of %d jobs did not finish and are left out: %s", len(left_out), len(every), left_out)
            if jobs:
                named = "run=" + ",".join(quoted(str(p)) for p in sorted(jobs, key=job_order))
                return invocation.with_overrides([*values[:i], named, *values[i + 1 :]]).as_sweep()
    return invocation


class SweepTable(Callback):
    """Hydra's callback at the end of a sweep: the table, the CSV, and the exit code."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Report on all jobs, whichever launcher ran them."""
        from sslrun.report.sweep import finish_sweep
        from sslrun.runs.job import explained

        directory = Path(config.hydra.sweep.dir)
        try:
            failed = finish_sweep(directory)
        except Exception as error:  # of which Hydra would make a warning
            log.error("%s", explained(error))
            raise SystemExit(1) from None
        if failed:
            log.error("%d of the jobs failed; the reasons stand above and in each job's run.log", failed)
            raise SystemExit(1)
