"""Going on with a run, a sweep or a study that was stopped: what its `resume=` stands for on the command line."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sslrun.base.errors import UserError
from sslrun.cli import places
from sslrun.cli.invocation import Invocation
from sslrun.config.commands import COMPARE
from sslrun.config.compose import compose_config
from sslrun.config.grammar import key_of, quoted
from sslrun.config.overrides import check_resumed, check_shape
from sslrun.config.renames import renamed_overrides
from sslrun.runs.find import find, newest, read_summary
from sslrun.runs.resume import refuse_older, resumed_config

SWEEP = "multirun.yaml"  # which Hydra writes into a sweep's folder


def is_resume(value: str) -> bool:
    """Tell whether an override is `resume=...`."""
    return value.lstrip("+").startswith("resume=")


def named(values: Iterable[str]) -> Path | None:
    """Return the run or sweep that `resume=` names, if it does."""
    given = [v.partition("=")[2].strip("'\"") for v in values if is_resume(v)]
    if len(given) > 1:
        raise UserError(f"resume= was said {len(given)} times: one run goes on at a time")
    return Path(given[0]) if given and given[0] not in ("", "null") else None


def newest_named(invocation: Invocation) -> Invocation:
    """Turn `resume=latest` into the newest run of the command, or into the sweep that it is in."""
    if named(invocation.overrides) != Path("latest"):
        return invocation
    command = invocation.command
    run = newest(find([command]))
    if run is None:
        raise UserError(f"resume=latest: no {command} run in outputs/{command}")
    directory, _ = run
    place = directory.parent if (directory.parent / SWEEP).is_file() else directory
    return invocation.with_overrides(f"resume={place}" if is_resume(v) else v for v in invocation.overrides)


def sweep_as_started(invocation: Invocation) -> Invocation:
    """Return what a sweep that `resume=` names was started with, into the same folder; another as it is.

    The jobs that are finished are passed over.
    """
    sweep = named(invocation.overrides)
    if sweep is None or not (sweep / SWEEP).is_file():
        return invocation
    others = [v for v in invocation.overrides if not is_resume(v)]
    if others:
        raise UserError(f"{' '.join(others)}: a sweep goes on as it was started; leave it away")
    try:
        hydra = OmegaConf.load(sweep / SWEEP).hydra
        started, settings, was = list(hydra.overrides.task), list(hydra.overrides.hydra), hydra.job.config_name
        folders = [s.path for s in hydra.runtime.config_sources if s.provider == "command-line"]
    except Exception as error:
        raise UserError(f"{sweep / SWEEP} cannot be read: {error}") from None
    if was != invocation.command:
        raise UserError(f"resume={sweep} is a {was} sweep: say sslrun {was} resume=...")
    for summary in _readable(sweep):
        refuse_older(sweep, summary)
    kept = [o for o in settings if not o.startswith(("hydra.sweep.dir=", "hydra.mode="))]
    if any("_target_" in o for o in kept):
        raise UserError(f"{sweep / SWEEP} would have Hydra call something of its own: start the sweep anew")
    if folders and invocation.config_dir is None:
        invocation = invocation.with_flags("-cd", folders[0])
    overrides = [*renamed_overrides(started), *kept, f"hydra.sweep.dir={quoted(str(sweep))}"]
    return replace(invocation.with_overrides(overrides).as_sweep(), sweep=sweep)


def _readable(sweep: Path) -> Iterator[dict[str, Any]]:
    """Yield the summaries of a sweep's jobs; of what is damaged, the job itself will tell."""
    for path in sweep.glob("*/summary.json"):
        with suppress(UserError):
            yield read_summary(path.parent)


def checked(invocation: Invocation, place: Path) -> Invocation:
    """Check what a run that goes on is asked for against its own config, and let it go on in its own directory.

    Raises:
        UserError: with a line for every mistake.
    """
    command, summary = invocation.command, read_summary(place)
    if command == COMPARE:
        invocation = study_as_started(invocation, summary)
    more = [v for v in invocation.overrides if not is_resume(v)]
    check_resumed(command, more, summary["config"], invocation.config_dir)
    there = in_its_own_directory(invocation, place)
    plain = [v for v in there.overrides if not v.lstrip("+").startswith("hydra")]
    requested = dict(v.lstrip("+").split("=", 1) for v in plain)
    config = resumed_config(place, command, requested, compose_config(command, plain, invocation.config_dir))
    check_shape(command, config, invocation.config_dir)
    places.refuse_missing_root(config)
    return there


def in_its_own_directory(invocation: Invocation, place: Path) -> Invocation:
    """Let a run go on in its own directory: Hydra is told not to make another.

    What is asked for is held against the run's config, not against the defaults, so Hydra must take any key.
    """
    values = invocation.overrides
    kept = [v for v in values if not is_resume(v) and not v.startswith(("hydra.run.dir=", "hydra.output_subdir="))]
    free = [f"++{v.lstrip('+')}" if "." in v.partition("=")[0] and not v.startswith("hydra") else v for v in kept]
    where = quoted(str(place))
    return invocation.with_overrides([*free, f"resume={where}", f"hydra.run.dir={where}", "hydra.output_subdir=null"])


def study_as_started(invocation: Invocation, summary: dict[str, Any]) -> Invocation:
    """Add the flags and Hydra's settings that a study was started with, but for those that are said again."""
    given = {key_of(v) for v in invocation.overrides}
    folder = summary.get("config_dir") if invocation.config_dir is None else None
    if folder and not Path(folder).is_dir():
        raise UserError(f"the study was started with -cd {folder}, which is not there: say -cd and where it is now")
    kept = [v for v in summary.get("launcher", []) if key_of(v) not in given and "_target_" not in v]
    if "hydra/launcher" in given:  # its settings are another launcher's
        kept = [v for v in kept if not key_of(v).startswith("hydra.launcher")]
    more = invocation.with_overrides([*invocation.overrides, *kept])
    return more.with_flags("-cd", folder) if folder else more
