"""Sweeps: over the finished jobs of an earlier sweep, into an empty folder, and the table at the end."""

import threading
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.base.text import counted, metric
from sslrun.cli.invocation import Invocation
from sslrun.config.grammar import quoted
from sslrun.run.find import is_finished, job_order, read_summary, score
from sslrun.run.loggers import begin_sweep, end_sweep

WATCH_SECONDS = 2.0  # between looks at the jobs
_ended = threading.Event()  # not of the callback, which is sent to the jobs


def refuse_used_folder(invocation: Invocation) -> None:
    """Raise if the folder of a sweep is not empty, since the jobs of two sweeps would mix."""
    for value in invocation.overrides:
        key, _, text = value.partition("=")
        folder = Path(text.strip("'\""))
        if key == "hydra.sweep.dir" and folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"hydra.sweep.dir={folder} is not empty; use a new folder")


def over_finished_jobs(invocation: Invocation) -> Invocation:
    """Convert `run=SWEEP` into a sweep over its finished jobs."""
    values = invocation.overrides
    for i, value in enumerate(values):
        key, _, text = value.partition("=")
        folder = Path(text)
        if key == "run" and folder.is_dir() and not (folder / "summary.json").exists():
            every = [p.parent for p in folder.glob("*/config.yaml")]
            jobs = [p for p in every if is_finished(p)]
            skipped = sorted(p.name for p in every if p not in jobs)
            if skipped:
                log.warning(
                    "Skipping %d of %d jobs, which did not finish: %s", len(skipped), len(every), ", ".join(skipped)
                )
            if jobs:
                named = "run=" + ",".join(quoted(str(p)) for p in sorted(jobs, key=job_order))
                return invocation.with_overrides([*values[:i], named, *values[i + 1 :]]).as_sweep()
    return invocation


class SweepTable(Callback):
    """Hydra callback that ends a sweep with a table, a CSV file, and the exit code.

    At MLflow and Weights & Biases its jobs are children of one run, or in one group. What jobs of submitit print goes
    to files, so lines here tell which have ended.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Open the parent of the jobs."""
        directory = Path(config.hydra.sweep.dir)
        begin_sweep(directory, config.hydra.job.config_name, config.get("logger") or [])
        _ended.clear()
        if config.hydra.runtime.choices["hydra/launcher"].startswith("submitit"):
            log.info("What the jobs print goes to %s", directory / ".submitit")
            threading.Thread(target=_watch, args=(directory,), daemon=True).start()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Report on all jobs, whichever launcher ran them; exit with 1 if one failed."""
        from sslrun.report.sweep import finish_sweep
        from sslrun.run.job import explained

        _ended.set()
        directory, failed = Path(config.hydra.sweep.dir), 1
        try:
            failed = finish_sweep(directory)
        except Exception as error:  # Hydra would turn it into a warning
            log.error("%s", explained(error))
            raise SystemExit(1) from None
        finally:
            end_sweep(directory, failed > 0)
        if failed:
            log.error("%s failed; see above and the run.log of each", counted(failed, "job"))
            raise SystemExit(1)


def _watch(directory: Path) -> None:
    """Log each job as it ends."""
    seen = {p.parent for p in directory.glob("*/summary.json") if is_finished(p.parent)}
    while not _ended.wait(WATCH_SECONDS):
        for job in sorted({p.parent for p in directory.glob("*/summary.json")} - seen, key=job_order):
            summary = read_summary(job)
            if summary["status"] != "running":
                seen.add(job)
                named = score(summary)
                log.info("job %s %s%s", job.name, summary["status"], f"  {metric(*named)}" if named else "")
