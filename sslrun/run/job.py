"""A job: Hydra calls `execute` for every command, once or for each point of a sweep."""

import errno
import gc
import os
import shlex
import shutil
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from sslrun.base import processes, signals
from sslrun.base.console import forget_logged, log, quietly, start_logging
from sslrun.base.errors import UserError, is_exhausted
from sslrun.base.machine import is_first
from sslrun.base.paths import home
from sslrun.base.text import duration
from sslrun.config.build import build, built_settings, refuse_foreign, settings_of
from sslrun.config.check import check
from sslrun.config.commands import typed
from sslrun.config.renames import renamed_composed
from sslrun.data.decode import ignore_pillow_warnings
from sslrun.data.workers import ensure_start_method
from sslrun.run import slurm
from sslrun.run.find import has_checkpoint, is_complete, read_summary, score
from sslrun.run.log import METRICS
from sslrun.run.resume import CHECKPOINT, MAY_DIFFER, STUDY, fixed, refuse_older, resumed_config
from sslrun.run.run import Run, Stages

IN_STUDY = "study_run"  # hydra.job.name of a run that belongs to a study
COPIED = ("summary.json", "config.yaml", METRICS)  # what a resumed run reads, with its checkpoints


class AnotherJob(UserError):
    """The directory of a job contains another job's run, which means that the sweep directory is wrong."""


def execute(config: DictConfig, stages: Stages) -> float | None:
    """Check the config, open the run directory, call the command's function, and close the run.

    Returns:
        The run's main metric, for sweepers that optimize; None if there is none.
    """
    _configure_process()
    hydra = HydraConfig.get()
    config = renamed_composed(config, hydra.overrides.task)
    in_study = hydra.job.name == IN_STUDY
    with signals.handled(), quietly() if in_study else nullcontext():
        try:
            return _to_its_end(config, stages, hydra)
        finally:
            processes.end()
            if hydra.mode == RunMode.MULTIRUN:
                gc.collect()  # before the next job


def _to_its_end(config: DictConfig, stages: Stages, hydra: Any) -> float | None:
    """Execute a job; whatever happens, its run is closed."""
    in_sweep, in_study = hydra.mode == RunMode.MULTIRUN, hydra.job.name == IN_STUDY
    if in_sweep and not in_study:
        log.info("--- job %s: %s", hydra.job.num, " ".join(hydra.overrides.task) or "defaults")
    opened: list[Run] = []  # until closed
    try:
        processes.start()
        return _score(_executed(config, stages, hydra, opened))
    except BrokenPipeError:  # `sslrun data check format=json | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        for run in opened:
            run.close("interrupted")
        raise SystemExit(141) from None
    except signals.Stopped as stop:
        for run in opened:
            (log.info if in_study else log.warning)("Stopped by %s.%s", stop, _resume_hint(run, hydra))
            run.close("interrupted")
        if not in_study or slurm.in_submitit():  # else the study requeues the job
            slurm.requeue(stop.number)
        if slurm.in_submitit():
            return None  # its launcher would end the sweep
        raise SystemExit(128 + stop.number) from None  # the convention of shells
    except Exception as error:
        message = explained(error)
        processes.report(lambda: _show(message))
        for run in opened:
            run.close("failed", error=str(error) or type(error).__name__)
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        if in_sweep and not isinstance(error, AnotherJob):
            return None  # continue with the other jobs; failed ones are reported at the end of the sweep
        raise SystemExit(1) from None


def _show(message: str) -> None:
    log.error("%s", message)
    if not is_first():  # its log is silent
        print(f"process {os.environ['RANK']}: {message}", file=sys.stderr, flush=True)


def _configure_process() -> None:
    """Configure this process for a command, except for the device (see `Device.claim`).

    The Python API does not call this.
    """
    start_logging()
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # so that modules in the working directory can be a _target_
    if not os.access(os.path.expanduser("~"), os.W_OK):  # as in a container; matplotlib would warn each time
        os.environ.setdefault("MPLCONFIGDIR", str(home() / "matplotlib"))
    ignore_pillow_warnings()
    ensure_start_method()


def _executed(config: DictConfig, stages: Stages, hydra: Any, opened: list[Run]) -> dict[str, Any]:
    """Run a job, unless it was finished by an earlier process, and return its summary."""
    in_sweep = hydra.mode == RunMode.MULTIRUN
    before = _job_before(hydra) if in_sweep else None
    in_study = hydra.job.name == IN_STUDY
    # The checkpoint of a pretrain run in a study may have been deleted.
    complete = is_complete(Path(hydra.runtime.output_dir)) if in_study else True
    if before is not None and before["status"] == "finished" and complete:
        log.info("Already finished: %s", hydra.runtime.output_dir)
        return before
    run = _open(config, hydra, stages, before)
    opened.append(run)
    run.connect()
    processes.refuse_differences(code=processes.code(), config=run.settings_digest())
    run.in_sweep, run.in_study = in_sweep, in_study
    if not in_study:
        forget_logged()  # so that every run has the lines on its data in its own log
    if "device" in run.config:
        build(run.config["device"]).claim()  # before anything is measured or trained
    function = stages.named(run.stage)
    result = function(run, built_settings(settings_of(function), run.config))
    with signals.deferred():
        run.close("finished", **result)
    opened.clear()
    log.info("Finished in %s: %s", duration(run.summary["wall_time_seconds"]), run.directory)
    if not (in_sweep or in_study) and (following := stages.following(run.summary, run.elsewhere)):
        log.info("Next: %s", following)
    signals.check()
    return run.summary


def _score(summary: dict[str, Any]) -> float | None:
    named = score(summary)
    return named[1] if named else None


def _resume_hint(run: Run, hydra: Any) -> str:
    """Return a hint with the command that resumes a run or its sweep; empty if it cannot be resumed."""
    can_resume = run.summary.get("resumable") == STUDY or ("resume" in run.config and has_checkpoint(run.directory))
    if hydra.job.name == IN_STUDY or not (run.in_sweep or can_resume):  # the study prints its own hint
        return ""
    place = hydra.sweep.dir if run.in_sweep else run.directory
    return f" Resume with: {typed(run.stage)} {shlex.quote(f'resume={Path(place).as_posix()}')}"


def explained(error: Exception) -> str:
    """Return one line for an error that the user can correct, and the traceback for any other."""
    if isinstance(error, UserError):
        return f"sslrun: {error}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        return f"sslrun: {error.filename or 'the disk'}: {error.strerror}; earlier files are kept"
    if isinstance(error, RuntimeError) and processes.is_lost(error):
        return "sslrun: another process has ended, or did not answer"
    if isinstance(error, torch.OutOfMemoryError):
        return "sslrun: out of GPU memory: try a smaller train.batch_size or batch_size"
    if is_exhausted(error):
        return "sslrun: out of memory: try a smaller train.batch_size, batch_size, network or sizes of pretext"
    return traceback.format_exc()


def _job_before(hydra: Any) -> dict[str, Any] | None:
    """Return this job's summary from an earlier process, or None if there is none.

    Raises:
        AnotherJob: the directory contains another job.
    """
    directory = Path(hydra.runtime.output_dir)
    if not (directory / "summary.json").exists():
        return None
    summary = read_summary(directory)
    overrides = [f"{k}={v}" for k, v in _overrides(hydra).items()]
    if fixed(summary["overrides"]) != fixed(overrides):
        raise AnotherJob(f"{directory} contains another job ({' '.join(summary['overrides'])}); nothing was changed")
    return summary


def _overrides(hydra: Any) -> dict[str, str]:
    return dict(o.lstrip("+").split("=", 1) for o in hydra.overrides.task if "=" in o)


def _open(config: DictConfig, hydra: Any, stages: Stages, before: dict[str, Any] | None) -> Run:
    """Check the config and open the run directory.

    Args:
        before: this job's summary from an earlier process.
    """
    stage, overrides = str(hydra.job.config_name), _overrides(hydra)
    directory = Path(hydra.runtime.output_dir)
    resumed = config.get("resume")
    if before is not None:
        refuse_older(directory, before)
        if before.get("resumable") in (CHECKPOINT, STUDY) and has_checkpoint(directory):
            resumed = directory
    if resumed:
        changes = {k: v for k, v in overrides.items() if k in MAY_DIFFER} if before is not None else overrides
        directory, config = Path(resumed), resumed_config(Path(resumed), stage, changes, config)
    elif directory.is_relative_to(Path.cwd()):
        directory = directory.relative_to(Path.cwd())
    refuse_foreign(OmegaConf.to_container(config), "the config")  # before its checkpoint is read
    mistakes = check(config, settings_of(stages.named(stage)))
    if mistakes:
        raise UserError("\n".join(mistakes))
    if resumed:
        build(dict(config.device))  # raises if the device is not available, before the run is changed
    if resumed and not is_first():
        directory = _copied(directory, Path(hydra.runtime.output_dir))
    processes.wait()  # until all have read what is resumed
    return Run(directory, stage, config, overrides, bool(resumed), before is not None, stages)


def _copied(directory: Path, to: Path) -> Path:
    """Return a copy of a run directory, with links to its checkpoints, for a process that does not write into it."""
    to.mkdir(parents=True, exist_ok=True)
    for path in directory.iterdir():
        if path.suffix == ".pt":
            (to / path.name).symlink_to(path.resolve())
        elif path.is_file() and path.name in COPIED:
            shutil.copy(path, to)
    return to
