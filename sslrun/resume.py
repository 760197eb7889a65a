"""Going on with a run, a sweep or a study that was stopped: what its `resume=` stands for on the command line."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sslrun import run
from sslrun.errors import UserError
from sslrun.overrides import key_of, quoted

SWEEP = "multirun.yaml"  # which Hydra writes into a sweep's folder


def latest(stage: str, values: list[str]) -> list[str]:
    """Turn `resume=latest` into the newest run of a stage, or into the sweep that it is in."""
    if named(values) != Path("latest"):
        return values
    found = run.find([stage])
    if not found:
        raise UserError(f"resume=latest: no {stage} run in outputs/{stage}")
    newest = found[-1][0]
    place = newest.parent if (newest.parent / SWEEP).is_file() else newest
    return [f"resume={place}" if is_resume(v) else v for v in values]


def stopped_sweep(values: list[str]) -> Path | None:
    """Return the folder of the sweep that `resume=` names, if it is one."""
    place = named(values)
    return place if place is not None and (place / SWEEP).is_file() else None


def as_started(sweep: Path, stage: str, values: list[str]) -> tuple[list[str], str | None]:
    """Return what a sweep was started with, into the same folder, and the user's config folder if it had one.

    The jobs that are finished are passed over.
    """
    others = [v for v in values if not is_resume(v)]
    if others:
        raise UserError(f"{' '.join(others)}: a sweep goes on as it was started; leave it away")
    try:
        hydra = OmegaConf.load(sweep / SWEEP).hydra
        started, settings, was = list(hydra.overrides.task), list(hydra.overrides.hydra), hydra.job.config_name
        folders = [s.path for s in hydra.runtime.config_sources if s.provider == "command-line"]
    except Exception as error:
        raise UserError(f"{sweep / SWEEP} cannot be read: {error}") from None
    if was != stage:
        raise UserError(f"resume={sweep} is a {was} sweep: say sslrun {was} resume=...")
    kept = [o for o in settings if not o.startswith(("hydra.sweep.dir=", "hydra.mode="))]
    if any("_target_" in o for o in kept):
        raise UserError(f"{sweep / SWEEP} would have Hydra call something of its own: start the sweep anew")
    return [*started, *kept, f"hydra.sweep.dir={quoted(str(sweep))}"], folders[0] if folders else None


def is_resume(value: str) -> bool:
    """Tell whether an override is `resume=...`."""
    return value.lstrip("+").startswith("resume=")


def named(values: list[str]) -> Path | None:
    """Return the run or sweep that `resume=` names, if it does."""
    said = [v.partition("=")[2].strip("'\"") for v in values if is_resume(v)]
    if len(said) > 1:
        raise UserError(f"resume= was said {len(said)} times: one run goes on at a time")
    return Path(said[0]) if said and said[0] not in ("", "null") else None


def in_its_own_directory(values: list[str], place: Path) -> list[str]:
    """Let a run go on in its own directory: Hydra is told not to make another.

    What is asked for is held against the run's config, not against the defaults, so Hydra must take any key.
    """
    kept = [v for v in values if not is_resume(v) and not v.startswith(("hydra.run.dir=", "hydra.output_subdir="))]
    free = [f"++{v.lstrip('+')}" if "." in v.partition("=")[0] and not v.startswith("hydra") else v for v in kept]
    where = quoted(str(place))
    return [*free, f"resume={where}", f"hydra.run.dir={where}", "hydra.output_subdir=null"]


def of_study(summary: dict[str, Any], own: str | None, values: list[str]) -> tuple[list[str], list[str]]:
    """Return the flags and Hydra's settings that a study was started with, for those that are not said again."""
    folder = summary.get("config_dir") if own is None else None
    flags = ["-cd", folder] if folder else []
    said = {key_of(v) for v in values}
    if folder and not Path(folder).is_dir():
        raise UserError(f"the study was started with -cd {folder}, which is not there: say -cd and where it is now")
    kept = [v for v in summary.get("launcher", []) if key_of(v) not in said and "_target_" not in v]
    if "hydra/launcher" in said:  # its settings are another launcher's
        kept = [v for v in kept if not key_of(v).startswith("hydra.launcher")]
    return flags, kept
