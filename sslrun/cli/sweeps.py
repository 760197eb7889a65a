"""Sweeps: over the finished jobs of an earlier sweep, into an empty folder, and the table at the end."""

import shlex
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.base.text import counted, metric
from sslrun.cli.invocation import Invocation
from sslrun.config.commands import typed
from sslrun.config.grammar import quoted
from sslrun.run import slurm
from sslrun.run.find import is_finished, job_order, read_summary, score
from sslrun.run.loggers import begin_sweep, end_sweep

WATCH_SECONDS = 2.0  # between looks at the jobs
_begun: list[tuple[Path, str]] = []  # the sweep that runs: its folder and command


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
        slurm.mark_sweep(directory)
        begin_sweep(directory, config.hydra.job.config_name, config.get("logger") or [])
        _begun.append((directory, config.hydra.job.config_name))
        if config.hydra.runtime.choices["hydra/launcher"].startswith("submitit"):
            log.info("What the jobs print goes to %s", directory / ".submitit")
            _watch.start(directory)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Report on all jobs, whichever launcher ran them; exit with 1 if one failed."""
        from sslrun.report.sweep import finish_sweep
        from sslrun.run.job import explained

        _watch.stop()
        directory, failed = Path(config.hydra.sweep.dir), 1
        try:
            failed = finish_sweep(directory)
        except Exception as error:  # Hydra would turn it into a warning
            log.error("%s", explained(error))
            raise SystemExit(1) from None
        finally:
            _begun.clear()
            end_sweep(directory, "failed" if failed else "finished")
        if failed:
            log.error("%s failed; see above and the run.log of each", counted(failed, "job"))
            raise SystemExit(1)


def end_interrupted() -> None:
    """End a sweep that did not come to its end; where its jobs print to files, say how to resume it."""
    watched = _watch.stop()
    while _begun:
        directory, command = _begun.pop()
        end_sweep(directory, "interrupted")
        if watched:
            resume = f"resume={shlex.quote(directory.as_posix())}"
            log.warning("The sweep did not come to its end. Resume with: %s %s", typed(command), resume)


class _Watch:
    """Logs in a thread how each job of a sweep ends."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()

    def start(self, directory: Path) -> None:
        """Begin to look at the jobs; those that have ended already are not logged."""
        self._known = self._states(directory)
        self._ended.clear()
        self._thread = threading.Thread(target=self._look, args=(directory,), daemon=True)
        self._thread.start()

    def stop(self) -> bool:
        """Look once more, and end; return whether there was something to end."""
        self._ended.set()
        if self._thread is None:
            return False
        self._thread.join()
        self._thread = None
        return True

    def _look(self, directory: Path) -> None:
        while True:
            ended = self._ended.wait(WATCH_SECONDS)
            for job, (status, result) in self._states(directory).items():
                if status != "running" and (status, result) != self._known.get(job):
                    log.info("job %s %s%s", job.name, status, result)
                self._known[job] = status, result
            if ended:
                return

    def _states(self, directory: Path) -> dict[Path, tuple[str, str]]:
        out = {}
        for job in sorted((p.parent for p in directory.glob("*/summary.json")), key=job_order):
            with suppress(UserError):  # damaged, as the table says
                summary = read_summary(job)
                named = score(summary)
                out[job] = summary["status"], f"  {metric(*named)}" if named else ""
        return out


_watch = _Watch()  # not of the callback, which is sent to the jobs
