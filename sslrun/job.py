"""One job: what Hydra calls, for every stage, once or once for each point of a sweep."""

import errno
import gc
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from keyword import iskeyword
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from sslrun import checkpoint, command, signals
from sslrun.config import UserError, build, check, locate, refuse_foreign
from sslrun.console import log, quietly, start_logging
from sslrun.device import kind
from sslrun.run import MAY_DIFFER, Run, read_summary, score

PART = "part"  # hydra.job.name of a run that is part of a study


class AnotherJob(UserError):
    """The folder of a job holds what another one has done: the whole sweep is in the wrong place."""


def job(config: DictConfig) -> float | None:
    """Check the config, open the run directory, run the stage, close the directory.

    Returns:
        The run's score, for sweepers that optimise; None where there is none.
    """
    start_logging()
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a user's own pretext.py beside her conf/ can be a _target_
    hydra = HydraConfig.get()
    in_sweep = hydra.mode == RunMode.MULTIRUN
    part = hydra.job.name == PART
    if in_sweep and not part:
        log.info("--- job %s: %s", hydra.job.num, " ".join(hydra.overrides.task) or "defaults")
    run = None
    try:
        with signals.handled(), quietly() if part else nullcontext():
            before = _job_before(hydra) if in_sweep else None
            there = hydra.runtime.output_dir
            lost = part and hydra.job.config_name == "pretrain" and not checkpoint.there_is_one(Path(there))
            if before is not None and before["status"] == "finished" and not lost:
                log.info("Finished before: %s", hydra.runtime.output_dir)
                return _score(before)
            run, function = _open(config, hydra, again=before is not None)
            run.in_sweep, run.is_part = in_sweep, part
            result = function(run, **{k + "_" * iskeyword(k): v for k, v in run.summary["config"].items()})
            with signals.later():
                run.close("finished", **result)
            log.info("Finished in %.0f s: %s", run.summary["wall_time_seconds"], run.directory)
            summary, run = run.summary, None
            signals.check()
        return _score(summary)
    except BrokenPipeError:  # `sslrun data check format=json | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if run is not None:
            run.close("interrupted")
        raise SystemExit(141) from None
    except signals.Stopped as stop:
        if run is not None:
            log.log(logging.INFO if part else logging.WARNING, "Stopped by %s.%s", stop, _how_to_go_on(run, hydra))
            run.close("interrupted")
        raise SystemExit(128 + stop.number) from None  # as shells have it
    except Exception as error:
        log.error("%s", _explained(error))
        if run is not None:
            run.close("failed", error=str(error) or type(error).__name__)
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        if in_sweep and not isinstance(error, AnotherJob):
            return None  # the other jobs go on; the end of the sweep tells of this one
        raise SystemExit(1) from None
    finally:
        if in_sweep:
            gc.collect()  # before the next job


def _has_parts(stage: str, config: dict[str, Any]) -> bool:
    """Tell whether a run goes on by its parts, each of which has a checkpoint of its own."""
    return stage == "compare" or (stage == "finetune" and config["mode"] == "auto")


def _score(summary: dict[str, Any]) -> float | None:
    named = score(summary)
    return named[1] if named else None


def _how_to_go_on(run: Run, hydra: Any) -> str:
    """Return the command that goes on with a run, or with the sweep that it is in; nothing if there is none."""
    can_go_on = _has_parts(run.stage, run.summary["config"]) or (
        "resume" in run.summary["config"] and checkpoint.there_is_one(run.directory)
    )
    if hydra.job.name == PART or not (run.in_sweep or can_go_on):  # of a part, the study says it
        return ""
    place = hydra.sweep.dir if run.in_sweep else run.directory
    return f" Go on with: {command(run.stage)} {shlex.quote(f'resume={Path(place).as_posix()}')}"


def _explained(error: Exception) -> str:
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
    asked = [f"{k}={v}" for k, v in _asked(hydra).items()]
    if _fixed(summary["overrides"]) != _fixed(asked):
        raise AnotherJob(f"{directory} is of another job ({' '.join(summary['overrides'])}): nothing is done")
    return summary


def _fixed(overrides: list[str]) -> list[str]:
    """Return the overrides of a run that cannot be changed when it goes on."""
    return [o for o in overrides if (key := o.partition("=")[0]) not in MAY_DIFFER and key.split(".")[0] != "device"]


def _asked(hydra: Any) -> dict[str, str]:
    return dict(o.lstrip("+").split("=", 1) for o in hydra.overrides.task if "=" in o)


def _open(config: DictConfig, hydra: Any, again: bool) -> tuple[Run, Callable[..., dict[str, Any]]]:
    """Check the config and open the run directory; return the run and its stage's function."""
    stage = str(hydra.job.config_name)
    asked = _asked(hydra)
    function = locate(f"sslrun.stages.{stage}.{stage}")
    directory = Path(hydra.runtime.output_dir)
    resumed = config.get("resume")
    if (
        again
        and "resume" in config
        and config.get("mode", "finetune") == "finetune"
        and checkpoint.there_is_one(directory)
    ):
        resumed = directory
    if resumed:
        changes = {k: v for k, v in asked.items() if k in MAY_DIFFER} if again else asked
        directory, config = Path(resumed), _resumed_config(Path(resumed), stage, changes, config)
    elif directory.is_relative_to(Path.cwd()):
        directory = directory.relative_to(Path.cwd())
    refuse_foreign(OmegaConf.to_container(config), "the config")  # sooner than when its checkpoint is read
    mistakes = check(config, function)
    if mistakes:
        raise UserError("\n".join(mistakes))
    if resumed:
        build(dict(config.device))  # before another device is written into the run: is it there?
    return Run(directory, stage, config, asked, resumed=bool(resumed), again=again), function


def _resumed_config(directory: Path, stage: str, asked: dict[str, str], composed: DictConfig) -> DictConfig:
    """Return the config of the run that goes on, with what may be changed changed.

    Raises:
        UserError: not a run of this stage, no checkpoint, or a key that must stay was changed.
    """
    summary = read_summary(directory)
    if summary["stage"] != stage:
        raise UserError(f"resume={directory} is a {summary['stage']} run: say sslrun {summary['stage']} resume=...")
    if not _has_parts(stage, summary["config"]) and not checkpoint.there_is_one(directory):
        raise UserError(f"resume={directory} has no checkpoint yet: start the run anew")
    refuse_foreign(summary["config"], directory)
    before = OmegaConf.create(summary["config"])
    after = DictConfig(OmegaConf.to_container(before))
    for node in ("device", "train"):  # keys that an older version did not have
        after[node] = OmegaConf.merge(composed[node], after[node])
    changed = []
    for key, value in asked.items():
        if key == "resume" or key.startswith("hydra") or f"{key}={value}" in summary["overrides"]:
            continue
        if key == "experiment":
            changed.append(f"{key}={value}: the run was not started with it; leave it away")
            continue
        if key == "device":
            after.device = _other_device(before.device, composed.device)
            continue
        if key.startswith("device."):
            OmegaConf.update(after, key, OmegaConf.select(composed, key))
            continue
        old = OmegaConf.select(before, key)
        if value.lstrip().startswith("{"):
            changed.append(f"{key}={value}: say its keys one by one, as in {key}.KEY=VALUE")
            continue
        if OmegaConf.is_dict(old) and "_target_" in old:  # a group: the same choice is no change
            others = _other_choice(key, composed[key], old, summary["overrides"])
            if others:
                changed.append(f"{key}={value}: the run was started with other {', '.join(others)}; leave it away")
            continue
        new = OmegaConf.from_dotlist([f"{key}={value}"])
        if OmegaConf.select(new, key) == old:
            continue
        if key not in MAY_DIFFER:
            changed.append(f"{key}={value}: the run was started with {old}; leave it away, or start a new run")
        after.merge_with(new)
    if changed:
        raise UserError("\n".join(changed))
    after.resume = str(directory)
    return after


def _other_choice(group: str, asked: DictConfig, before: DictConfig, overrides: list[str]) -> list[str]:
    """Return the keys in which a group's choice differs from a run's, but for those that the run had set itself."""
    if asked is None or asked.get("_target_") is None:  # from_checkpoint
        return []
    if asked["_target_"] != before["_target_"]:
        return ["_target_"]
    set_then = {o.partition("=")[0] for o in overrides}
    may = (*set_then, *MAY_DIFFER)
    keys = [str(k) for k in asked]
    return [k for k in keys if f"{group}.{k}" not in may and k in before and asked[k] != before[k]]


def _other_device(before: DictConfig, asked: DictConfig) -> DictConfig:
    """Return the device asked for; on the same kind of device a run keeps the mode that was measured."""
    after = asked.copy()
    if kind(asked.name) == before.name:
        for key in ("precision", "memory_format"):
            if asked[key] == "auto":
                after[key] = before.get(key, "auto")
    return after


class SweepTable(Callback):
    """Hydra's callback at the end of a sweep: the table, the CSV, and the exit code."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Report on all jobs, whichever launcher ran them."""
        from sslrun.report.figures import finish_sweep

        directory = Path(config.hydra.sweep.dir)
        try:
            failed = finish_sweep(directory)
        except Exception as error:  # of which Hydra would make a warning
            log.error("%s", _explained(error))
            raise SystemExit(1) from None
        if failed:
            log.error("%d of the jobs failed; the reasons stand above and in each job's run.log", failed)
            raise SystemExit(1)
