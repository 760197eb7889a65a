"""Resuming a run: which settings may change, and the config with these changes."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sslrun.base.errors import UserError
from sslrun.base.files import write_text
from sslrun.base.text import with_article
from sslrun.base.version import __version__
from sslrun.config.build import refuse_foreign
from sslrun.config.nodes import flattened
from sslrun.run.find import has_checkpoint, read_summary

STUDY, CHECKPOINT = "study", "checkpoint"  # values of `resumable` in a summary: by its runs, or from its checkpoint
# Keys that may change when a run is resumed, in addition to the device.
MAY_DIFFER = (
    "train.epochs", "train.steps", "train.save_minutes", "train.keep_every", "dataset.root", "unlabeled", "logger"
)  # fmt: skip


class Unchanged:
    """The original files of a run, to restore them if resuming fails."""

    def __init__(self, directory: Path) -> None:
        files = [p for n in ("summary.json", "config.yaml") if (p := directory / n).is_file()]
        self._texts = {p: p.read_text(encoding="utf-8") for p in files}

    def restore(self) -> None:
        """Restore the files."""
        for path, text in self._texts.items():
            write_text(path, text)


def differing_keys(now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """Return the keys that differ between two configs of a run, except those that may change.

    Keys that only one of them has come from another version and are ignored.
    """
    a, b = flattened(now), flattened(then)
    return [
        k for k in a if k in b and a[k] != b[k] and k not in (*MAY_DIFFER, "resume") and not k.startswith("device.")
    ]


def fixed(overrides: list[str]) -> list[str]:
    """Return the overrides of a run that may not change when it is resumed."""
    return [o for o in overrides if (key := o.partition("=")[0]) not in MAY_DIFFER and key.split(".")[0] != "device"]


def refuse_older(directory: Path, summary: dict[str, Any]) -> None:
    """Refuse to resume a run that was started with another version.

    Raises:
        UserError: the major or minor version differs.
    """
    started = str((summary.get("versions") or {}).get("sslrun"))
    if started.split(".")[:2] != __version__.split(".")[:2]:
        weights = f" from its weights with init={directory}" if has_checkpoint(directory) else ""
        raise UserError(
            f"{directory} was started with sslrun {started} and cannot be resumed with {__version__}: use that "
            f"version, or start a new run{weights}"
        )


def resumed_config(directory: Path, stage: str, requested: dict[str, str], composed: DictConfig) -> DictConfig:
    """Return the config of a resumed run, with the requested changes.

    Args:
        requested: overrides of the command line, key -> value.
        composed: config composed from these overrides.

    Raises:
        UserError: the run is of another stage or version or has no checkpoint, or a key was changed that may not.
    """
    summary = read_summary(directory)
    if summary["stage"] != stage:
        raise UserError(
            f"resume={directory} is {with_article(summary['stage'])} run: use sslrun {summary['stage']} resume=..."
        )
    refuse_older(directory, summary)
    if summary.get("resumable") != STUDY and not has_checkpoint(directory):
        raise UserError(f"resume={directory} has no checkpoint yet: start a new run")
    refuse_foreign(summary["config"], directory)
    if missing := [str(k) for k in composed if k not in summary["config"]]:  # only development versions
        raise UserError(
            f"{directory} was started by a version without {', '.join(missing)}, and cannot be resumed: start a new run"
        )
    before = OmegaConf.create(summary["config"])
    after = DictConfig(OmegaConf.to_container(before))
    for node in ("device", "train"):  # keys that an older version did not have
        after[node] = OmegaConf.merge(composed[node], after[node])
    mistakes = []
    for key, value in requested.items():
        if key == "resume" or key.startswith("hydra") or f"{key}={value}" in summary["overrides"]:
            continue
        if key == "experiment":
            mistakes.append(f"{key}={value}: the run was not started with it; remove it")
            continue
        if key == "device":
            after.device = _other_device(before.device, composed.device)
            continue
        if key.startswith("device."):
            OmegaConf.update(after, key, OmegaConf.select(composed, key))
            continue
        old = OmegaConf.select(before, key)
        if value.lstrip().startswith("{"):
            mistakes.append(f"{key}={value}: set its keys one by one, as {key}.KEY=VALUE")
            continue
        if OmegaConf.is_dict(old) and "_target_" in old:  # a group: the same choice is no change
            others = _other_choice(key, composed[key], old, summary["overrides"])
            if others:
                mistakes.append(f"{key}={value}: the run was started with other {', '.join(others)}; remove it")
            continue
        new = OmegaConf.from_dotlist([f"{key}={value}"])
        if OmegaConf.select(new, key) == old:
            continue
        if key not in MAY_DIFFER:
            mistakes.append(f"{key}={value}: the run was started with {old}; remove it, or start a new run")
        after.merge_with(new)
    if mistakes:
        raise UserError("\n".join(mistakes))
    after.resume = str(directory)
    return after


def _other_choice(group: str, requested: DictConfig, before: DictConfig, overrides: list[str]) -> list[str]:
    """Return the keys in which a group's choice differs from the run's, except those that the run has overridden."""
    if requested is None or requested.get("_target_") is None:  # from_checkpoint
        return []
    if requested["_target_"] != before["_target_"]:
        return ["_target_"]
    ignored = (*(o.partition("=")[0] for o in overrides), *MAY_DIFFER)
    keys = [str(k) for k in requested]
    return [k for k in keys if f"{group}.{k}" not in ignored and k in before and requested[k] != before[k]]


def _other_device(before: DictConfig, requested: DictConfig) -> DictConfig:
    """Return the requested device; a device of the same kind keeps the precision and memory format of autotuning."""
    from sslrun.device import kind  # which imports torch

    after = requested.copy()
    if kind(requested.name) == before.name:
        for key in ("precision", "memory_format"):
            if requested[key] == "auto":
                after[key] = before.get(key, "auto")
    return after
