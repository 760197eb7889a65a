"""Going on with a run: what may differ, and its config with that changed."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sslrun.base.errors import UserError
from sslrun.base.files import write_text
from sslrun.base.version import __version__
from sslrun.config.build import refuse_foreign
from sslrun.config.nodes import flattened
from sslrun.runs.find import has_checkpoint, read_summary

STUDY, CHECKPOINT = "study", "checkpoint"  # what a run notes as `resumable`: by its runs, or from its checkpoint
# What may differ when a run goes on, besides the device: how long it is, where the data lie, what is kept.
MAY_DIFFER = ("train.epochs", "train.steps", "train.save_minutes", "train.keep_every", "dataset.root", "unlabeled")


class Unchanged:
    """The files of a run as they were, until it really goes on: a run that could not go on is left as it was."""

    def __init__(self, directory: Path) -> None:
        files = [p for n in ("summary.json", "config.yaml") if (p := directory / n).is_file()]
        self._texts = {p: p.read_text(encoding="utf-8") for p in files}

    def restore(self) -> None:
        """Write the files as they were."""
        for path, text in self._texts.items():
            write_text(path, text)


def differing_keys(now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """Return the keys that differ between two configs of a run that goes on, but for those that may.

    Keys that only one of them has are another version's.
    """
    a, b = flattened(now), flattened(then)
    return [
        k for k in a if k in b and a[k] != b[k] and k not in (*MAY_DIFFER, "resume") and not k.startswith("device.")
    ]


def fixed(overrides: list[str]) -> list[str]:
    """Return the overrides of a run that cannot be changed when it goes on."""
    return [o for o in overrides if (key := o.partition("=")[0]) not in MAY_DIFFER and key.split(".")[0] != "device"]


def refuse_older(directory: Path, summary: dict[str, Any]) -> None:
    """Let a run go on with the version alone that it was started with.

    Raises:
        UserError: it was another one.
    """
    started = str((summary.get("versions") or {}).get("sslrun"))
    if started.split(".")[:2] != __version__.split(".")[:2]:
        weights = f", for which init={directory} takes its weights" if has_checkpoint(directory) else ""
        raise UserError(
            f"{directory} was started with sslrun {started}, and this is {__version__}, which does not go on where "
            f"that stopped: go on with that version, or start anew{weights}"
        )


def resumed_config(directory: Path, stage: str, requested: dict[str, str], composed: DictConfig) -> DictConfig:
    """Return the config of the run that goes on, with what may be changed changed.

    Raises:
        UserError: not a run of this stage, no checkpoint, or a key that must stay was changed.
    """
    summary = read_summary(directory)
    if summary["stage"] != stage:
        raise UserError(f"resume={directory} is a {summary['stage']} run: say sslrun {summary['stage']} resume=...")
    refuse_older(directory, summary)
    if summary.get("resumable") != STUDY and not has_checkpoint(directory):
        raise UserError(f"resume={directory} has no checkpoint yet: start the run anew")
    refuse_foreign(summary["config"], directory)
    before = OmegaConf.create(summary["config"])
    after = DictConfig(OmegaConf.to_container(before))
    for node in ("device", "train"):  # keys that an older version did not have
        after[node] = OmegaConf.merge(composed[node], after[node])
    changed = []
    for key, value in requested.items():
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


def _other_choice(group: str, requested: DictConfig, before: DictConfig, overrides: list[str]) -> list[str]:
    """Return the keys in which a group's choice differs from a run's, but for those that the run had set itself."""
    if requested is None or requested.get("_target_") is None:  # from_checkpoint
        return []
    if requested["_target_"] != before["_target_"]:
        return ["_target_"]
    set_then = {o.partition("=")[0] for o in overrides}
    may = (*set_then, *MAY_DIFFER)
    keys = [str(k) for k in requested]
    return [k for k in keys if f"{group}.{k}" not in may and k in before and requested[k] != before[k]]


def _other_device(before: DictConfig, requested: DictConfig) -> DictConfig:
    """Return the device asked for; on the same kind of device a run keeps the mode that was measured."""
    from sslrun.device import kind  # which imports torch

    after = requested.copy()
    if kind(requested.name) == before.name:
        for key in ("precision", "memory_format"):
            if requested[key] == "auto":
                after[key] = before.get(key, "auto")
    return after
