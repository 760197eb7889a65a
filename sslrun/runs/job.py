"""One job: what Hydra calls, for every command, once or once for each point of a sweep."""

import errno
import gc
import os
import shlex
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from sslrun.base import signals
from sslrun.base.console import log, quietly, start_logging
from sslrun.base.errors import UserError
from sslrun.base.text import duration
from sslrun.config.build import build, built_settings, refuse_foreign, settings_of
from sslrun.config.check import check
from sslrun.config.commands import typed
from sslrun.config.renames import renamed_composed
from sslrun.data.decode import ignore_pillow_warnings
from sslrun.data.workers import ensure_start_method
from sslrun.runs.find import has_checkpoint, is_complete, read_summary, score
from sslrun.runs.resume import CHECKPOINT, MAY_DIFFER, STUDY, fixed, refuse_older, resumed_config
from sslrun.runs.run import Run, Stages

IN_STUDY = "study_run"  # hydra.job.name of a run that belongs to a study


class AnotherJob(UserError):
    """The folder of a job holds what another one has done: the whole sweep is in the wrong place."""


def execute(config: DictConfig, stages: Stages) -> float | None:
    """Check the config, open the run directory, run the command's function, close the directory.

    Returns:
        The run's score, for sweepers that optimise; None where there is none.
    """
    _take_process()
    hydra = HydraConfig.get()
    config = renamed_composed(config, hydra.overrides.task)
    in_sweep, in_study = hydra.mode == RunMode.MULTIRUN, hydra.job.name == IN_STUDY
    if in_sweep and not in_study:
        log.info("--- job %s: %s", hydra.job.num, " ".join(hydra.overrides.task) or "defaults")
    opened: list[Run] = []  # and not closed yet
    try:
        with signals.handled(), quietly() if in_study else nullcontext():
            return _score(_executed(config, stages, hydra, opened))
    except BrokenPipeError:  # `sslrun data check format=json | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        for run in opened:
            run.close("interrupted")
        raise SystemExit(141) from None
    except signals.Stopped as stop:
        for run in opened:
            with quietly() if in_study else nullcontext():  # the study says so on screen
                (log.info if in_study else log.warning)("Stopped by %s.%s", stop, _resume_hint(run, hydra))
            run.close("interrupted")
        raise SystemExit(128 + stop.number) from None  # as shells have it
    except Exception as error:
        log.error("%s", explained(error))
        for run in opened:
            run.close("failed", error=str(error) or type(error).__name__)
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        if in_sweep and not isinstance(error, AnotherJob):
            return None  # the other jobs go on; the end of the sweep tells of this one
        raise SystemExit(1) from None
    finally:
        if in_sweep:
            gc.collect()  # before the next job


def _take_process() -> None:
    """Change what a command needs changed of its process, but for what depends on the device: see `Device.claim`.

    The Python interface does none of it.
    """
    start_logging()
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a user's own pretext.py beside her conf/ can be a _target_
    ignore_pillow_warnings()
    ensure_start_method()


def _executed(config: DictConfig, stages: Stages, hydra: Any, opened: list[Run]) -> dict[str, Any]:
    """Run a job, unless an earlier process has done it, and return its summary."""
    in_sweep = hydra.mode == RunMode.MULTIRUN
    before = _job_before(hydra) if in_sweep else None
    in_study = hydra.job.name == IN_STUDY
    whole = is_complete(Path(hydra.runtime.output_dir)) if in_study else True  # a pretraining may have lost its weights
    if before is not None and before["status"] == "finished" and whole:
        log.info("Finished before: %s", hydra.runtime.output_dir)
        return before
    run = _open(config, hydra, stages, before)
    opened.append(run)
    run.in_sweep, run.in_study = in_sweep, in_study
    if "device" in run.config:
        build(run.config["device"]).claim()  # before anything is measured or trained
    function = stages.named(run.stage)
    result = function(run, built_settings(settings_of(function), run.config))
    with signals.deferred():
        run.close("finished", **result)
    opened.clear()
    log.info("Finished in %s: %s", duration(run.summary["wall_time_seconds"]), run.directory)
    signals.check()
    return run.summary


def _score(summary: dict[str, Any]) -> float | None:
    named = score(summary)
    return named[1] if named else None


def _resume_hint(run: Run, hydra: Any) -> str:
    """Return the command that goes on with a run, or with the sweep that it is in; nothing if there is none."""
    can_resume = run.summary.get("resumable") == STUDY or ("resume" in run.config and has_checkpoint(run.directory))
    if hydra.job.name == IN_STUDY or not (run.in_sweep or can_resume):  # of a run in a study, the study says it
        return ""
    place = hydra.sweep.dir if run.in_sweep else run.directory
    return f" Go on with: {typed(run.stage)} {shlex.quote(f'resume={Path(place).as_posix()}')}"


def explained(error: Exception) -> str:
    """Return one line for what a user can mend, and the traceback for everything else."""
    if isinstance(error, UserError):
        return f"sslrun: {error}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        return f"sslrun: {error.filename or 'the disk'}: {error.strerror}; what was written before is kept"
    if isinstance(error, torch.OutOfMemoryError):
        return "sslrun: the GPU's memory is full: try a smaller train.batch_size or batch_size"
    return traceback.format_exc()


def _job_before(hydra: Any) -> dict[str, Any] | None:
    """Return the summary that this job of a sweep has from an earlier process, of which this one goes on.

    Raises:
        AnotherJob: the folder is not of this one.
    """
    directory = Path(hydra.runtime.output_dir)
    if not (directory / "summary.json").exists():
        return None
    summary = read_summary(directory)
    overrides = [f"{k}={v}" for k, v in _overrides(hydra).items()]
    if fixed(summary["overrides"]) != fixed(overrides):
        raise AnotherJob(f"{directory} is of another job ({' '.join(summary['overrides'])}): nothing is done")
    return summary


def _overrides(hydra: Any) -> dict[str, str]:
    return dict(o.lstrip("+").split("=", 1) for o in hydra.overrides.task if "=" in o)


def _open(config: DictConfig, hydra: Any, stages: Stages, before: dict[str, Any] | None) -> Run:
    """Check the config and open the run directory.

    Args:
        before: the summary of this job of a sweep from an earlier process.
    """
    stage, overrides = str(hydra.job.config_name), _overrides(hydra)
    directory = Path(hydra.runtime.output_dir)
    resumed = config.get("resume")
    if before is not None:
        refuse_older(directory, before)
        if before.get("resumable") == CHECKPOINT and has_checkpoint(directory):
            resumed = directory
    if resumed:
        changes = {k: v for k, v in overrides.items() if k in MAY_DIFFER} if before is not None else overrides
        directory, config = Path(resumed), resumed_config(Path(resumed), stage, changes, config)
    elif directory.is_relative_to(Path.cwd()):
        directory = directory.relative_to(Path.cwd())
    refuse_foreign(OmegaConf.to_container(config), "the config")  # sooner than when its checkpoint is read
    mistakes = check(config, settings_of(stages.named(stage)))
    if mistakes:
        raise UserError("\n".join(mistakes))
    if resumed:
        build(dict(config.device))  # before another device is written into the run: is it there?
    return Run(directory, stage, config, overrides, bool(resumed), before is not None, stages)
