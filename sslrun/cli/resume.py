"""Resuming an interrupted run, sweep or study: the overrides and flags that `resume=` stands for."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.base.text import with_article
from sslrun.cli import places
from sslrun.cli.invocation import Invocation
from sslrun.config.commands import COMMANDS, COMPARE, FINETUNE
from sslrun.config.compose import compose_config
from sslrun.config.grammar import key_of, quoted
from sslrun.config.overrides import check_resumed, check_shape
from sslrun.config.renames import renamed_overrides
from sslrun.run import slurm
from sslrun.run.find import find, has_checkpoint, newest, read_summary
from sslrun.run.resume import STUDY, refuse_older, resumed_config

SWEEP = "multirun.yaml"  # written by Hydra to the folder of a sweep


def is_resume(value: str) -> bool:
    """Return whether an override is `resume=...`."""
    return value.lstrip("+").startswith("resume=")


def resumed_directory(values: Iterable[str]) -> Path | None:
    """Return the directory of the run or sweep given by `resume=`; None without it.

    Raises:
        UserError: `resume=` is given more than once.
    """
    given = [v.partition("=")[2].strip("'\"") for v in values if is_resume(v)]
    if len(given) > 1:
        raise UserError(f"resume= is given {len(given)} times; resume one run at a time")
    return Path(given[0]) if given and given[0] not in ("", "null") else None


def with_latest_run(invocation: Invocation) -> Invocation:
    """Replace `resume=latest` by the newest run of the command, or by the sweep that contains it.

    Raises:
        UserError: the command has no run.
    """
    if resumed_directory(invocation.overrides) != Path("latest"):
        return invocation
    command = invocation.command
    run = newest(find([command]))
    if run is None:
        raise UserError(f"resume=latest: no {command} run in outputs/{command}")
    directory, _ = run
    path = directory.parent if (directory.parent / SWEEP).is_file() else directory
    return invocation.with_overrides(f"resume={path}" if is_resume(v) else v for v in invocation.overrides)


def requeued(invocation: Invocation) -> Invocation:
    """Add `resume=` in a SLURM job that was requeued, if it had started this command before."""
    command, values = invocation.command, invocation.overrides
    if not slurm.is_requeued() or COMMANDS[command].one_shot or resumed_directory(values) is not None:
        return invocation
    own = [v for v in values if not key_of(v).startswith("hydra")]
    if invocation.multirun:
        sweeps = [d for d in slurm.our_sweeps(command) if (d / SWEEP).is_file()]
        found = [d for d in sweeps if list(OmegaConf.load(d / SWEEP).hydra.overrides.task) == own]
        return invocation.with_overrides([f"resume={quoted(str(found[-1]))}"]) if found else invocation
    given = [f"{k}={v}" for k, v in dict(o.lstrip("+").split("=", 1) for o in own if "=" in o).items()]
    run = newest(find([command]), lambda _, s: slurm.is_ours(s) and s["overrides"] == given)
    if run is None:
        return invocation
    directory, summary = run
    if summary["status"] == "finished":
        log.info("Already finished: %s", directory)
        raise SystemExit(0)
    if not has_checkpoint(directory) and summary.get("resumable") != STUDY:
        return invocation
    log.info("SLURM job %s was requeued: resuming %s", summary[slurm.JOB], directory)
    return invocation.with_overrides([*values, f"resume={quoted(str(directory))}"])


def restored_sweep(invocation: Invocation) -> Invocation:
    """Return the invocation that started the sweep given by `resume=`, with the same folder; others unchanged.

    Jobs that are finished will be skipped.

    Raises:
        UserError: there are other overrides, or the sweep cannot be resumed.
    """
    sweep = resumed_directory(invocation.overrides)
    if sweep is None or not (sweep / SWEEP).is_file():
        return invocation
    others = [v for v in invocation.overrides if not is_resume(v)]
    if others:
        raise UserError(f"{' '.join(others)}: a sweep is resumed with its own settings; remove the overrides")
    try:
        hydra = OmegaConf.load(sweep / SWEEP).hydra
        started, settings, command = list(hydra.overrides.task), list(hydra.overrides.hydra), hydra.job.config_name
        folders = [s.path for s in hydra.runtime.config_sources if s.provider == "command-line"]
    except Exception as error:
        raise UserError(f"{sweep / SWEEP} cannot be read: {error}") from None
    if command != invocation.command:
        raise UserError(f"resume={sweep} is {with_article(command)} sweep; use sslrun {command} resume={sweep}")
    for summary in _readable(sweep):
        refuse_older(sweep, summary)
    kept = [o for o in settings if not o.startswith(("hydra.sweep.dir=", "hydra.mode="))]
    if any("_target_" in o for o in kept):
        raise UserError(f"{sweep / SWEEP} has a _target_ in Hydra's settings, which is not allowed; start a new sweep")
    if folders and invocation.config_dir is None:
        invocation = invocation.with_flags("-cd", folders[0])
    overrides = [*renamed_overrides(started), *kept, f"hydra.sweep.dir={quoted(str(sweep))}"]
    return replace(invocation.with_overrides(overrides).as_sweep(), sweep=sweep)


def _readable(sweep: Path) -> Iterator[dict[str, Any]]:
    """Yield the summaries of a sweep's jobs, without damaged ones, which the job itself reports."""
    for path in sweep.glob("*/summary.json"):
        with suppress(UserError):
            yield read_summary(path.parent)


def checked(invocation: Invocation, directory: Path) -> Invocation:
    """Check the overrides of a resumed run against its own config, and return the invocation that resumes it.

    Raises:
        UserError: one line for each mistake.
    """
    command, summary = invocation.command, read_summary(directory)
    refuse_older(directory, summary)
    if command in (COMPARE, FINETUNE) and summary["stage"] == command and "validation" not in summary["config"]:
        raise UserError(
            f"{directory} was started by a version that did not count validation labels in the label budget, and "
            "cannot be resumed: start a new run"
        )
    if command == COMPARE:
        invocation = restored_study(invocation, summary)
    more = [v for v in invocation.overrides if not is_resume(v)]
    check_resumed(command, more, summary["config"], invocation.config_dir)
    resumed = in_run_directory(invocation, directory)
    plain = [v for v in resumed.overrides if not v.lstrip("+").startswith("hydra")]
    requested = dict(v.lstrip("+").split("=", 1) for v in plain)
    config = resumed_config(directory, command, requested, compose_config(command, plain, invocation.config_dir))
    check_shape(command, config, invocation.config_dir)
    places.refuse_missing_root(config)
    return resumed


def in_run_directory(invocation: Invocation, directory: Path) -> Invocation:
    """Set Hydra's output directory to that of the resumed run.

    Overrides apply to the run's config, not to the defaults, so nested keys are prefixed with `++`.
    """
    values = invocation.overrides
    kept = [v for v in values if not is_resume(v) and not v.startswith(("hydra.run.dir=", "hydra.output_subdir="))]
    forced = [f"++{v.lstrip('+')}" if "." in v.partition("=")[0] and not v.startswith("hydra") else v for v in kept]
    path = quoted(str(directory))
    return invocation.with_overrides([*forced, f"resume={path}", f"hydra.run.dir={path}", "hydra.output_subdir=null"])


def restored_study(invocation: Invocation, summary: dict[str, Any]) -> Invocation:
    """Add the flags and Hydra settings that a study was started with, unless they are given again.

    Raises:
        UserError: its config folder does not exist any more.
    """
    given = {key_of(v) for v in invocation.overrides}
    folder = summary.get("config_dir") if invocation.config_dir is None else None
    if folder and not Path(folder).is_dir():
        raise UserError(f"the study was started with -cd {folder}, which does not exist; give its new path with -cd")
    kept = [v for v in summary.get("launcher", []) if key_of(v) not in given and "_target_" not in v]
    if "hydra/launcher" in given:  # the kept settings are those of another launcher
        kept = [v for v in kept if not key_of(v).startswith("hydra.launcher")]
    more = invocation.with_overrides([*invocation.overrides, *kept])
    return more.with_flags("-cd", folder) if folder else more
