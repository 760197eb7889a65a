"""Names of 0.1.0 that have changed: config keys, and keys in files of its runs. For `_target_` see build.py.

Old config keys are accepted until 0.2.0, with a notice; files of old runs are read without one.
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.config.grammar import key_of
from sslrun.config.nodes import short_name
from sslrun.config.types import Node

KEYS = {  # in configs and overrides; in those of `compare` also after `finetune.`
    "readout": "pooling",
    "labelled": "labeled",
    "augment.tilt": "augment.degrees",
    "pretext.augment.tilt": "pretext.augment.degrees",
}
AUGMENT = {"tilt": "degrees"}  # in every node with our Augment as the target, whatever its name
HOLD_OVERRIDES = ("search", "finetune", "inits", "pretexts")  # keys whose values contain overrides

PRETEXTS, IMAGENET, INITS = "pretexts", "imagenet", "inits"  # the first two have become the third
OLD_INITS = (PRETEXTS, IMAGENET)
PUBLISHED = "pretrained"  # the entry of `inits` for `imagenet=true`

SUMMARY = {"readouts": "poolings", "val/sure_above": "val/confidence_threshold"}  # also keys of a checkpoint's metrics
COLUMNS = {  # of results.csv
    "start": "initialization",
    "amount": "label_budget",
    "held_out_accuracy": "cv_accuracy",
    "held_out_loss": "cv_loss",
}
FOLDERS = {"parts": "study_runs"}  # below outputs/<stage>/

_OLD = "|".join(sorted(map(re.escape, KEYS), key=len, reverse=True))
_OVERRIDE = re.compile(rf"^(?P<sign>[+~]*)(?P<study>finetune\.)?(?P<key>{_OLD})(?P<rest>[=@].*)?$", re.DOTALL)
_IN_TEXT = re.compile(rf"(?<![\w./])({_OLD})(?==)|(?<=~)({_OLD})(?![\w./=])")
_IN_MAPPING = re.compile(rf"(?<![\w./])({'|'.join(AUGMENT)})(?=\s*:)")

_noted: set[str] = set()


def renamed_keys(mapping: Node, table: dict[str, str]) -> Node:
    """Return a mapping with its keys renamed by a table."""
    return {table.get(k, k): v for k, v in mapping.items()}


def with_label_counts(summary: Node) -> Node:
    """Return a summary in which labels are counted as today: older ones have `labels: {train, validation}`."""
    if not isinstance(summary.get("labels"), dict):
        return summary
    train, val = summary["labels"].get("train", 0), summary["labels"].get("validation", 0)
    per_class, fraction = summary.get("labels_per_class"), summary.get("label_fraction")
    budget = f"label_fraction={fraction or 1.0:g}" if per_class is None else f"labels_per_class={per_class}"
    counts = {"labels_total": train + val, "labels_train": train, "labels_val": val, "val/images": val}
    return {k: v for k, v in summary.items() if k != "labels"} | counts | {"label_budget": budget}


def renamed_overrides(overrides: Iterable[str], notice: bool = False) -> list[str]:
    """Return overrides with current keys.

    Args:
        notice: log a notice for every old key.
    """
    return [_renamed_override(o, notice) for o in overrides]


def with_inits(overrides: Sequence[str], pretext: Callable[[], str]) -> list[str]:
    """Return the overrides of a study with `inits=` instead of `pretexts=` and `imagenet=`, and log a notice.

    Args:
        overrides: with current names.
        pretext: returns the choice of `pretext=`, which is compared if there is no list.

    Raises:
        UserError: both old and new keys are given, or `imagenet` has another value than it had.
    """
    old = {key: o.partition("=")[2] for o in overrides if (key := key_of(o)) in OLD_INITS}
    if not old:
        return list(overrides)
    kept = [o for o in overrides if key_of(o) not in old]
    if INITS in map(key_of, kept):
        raise UserError(f"{next(iter(old))}= is now inits=; give only that")
    listed, published = old.get(PRETEXTS, "null"), _published(old.get(IMAGENET, "auto"))
    if listed.lower() == "null" and published is not None:
        listed = f"[{pretext()}]"
    if listed.endswith("]") and published:
        listed = f"{listed[:-1].rstrip(',')},{PUBLISHED}]"
    names = [f"{key}=" for key in old]
    log.warning("%s %s now inits=; read as inits=%s", " and ".join(names), "are" if len(names) > 1 else "is", listed)
    return [*kept, f"{INITS}={listed}"]


def _published(imagenet: object) -> bool | None:
    """Return whether a study has published weights by its older key `imagenet`; None for `auto`."""
    values = {"true": True, "false": False, "auto": None}
    text = str(imagenet).lower()  # Hydra takes any case
    if text not in values:
        raise UserError(f"{IMAGENET}={imagenet}: must be auto, true or false; it is now inits=[...,{PUBLISHED}]")
    return values[text]


def _with_inits(config: Node, given: Collection[str]) -> Node:
    """Return the config of a study with `inits` instead of the older keys `pretexts` and `imagenet`."""
    if not config.keys() & {*OLD_INITS}:
        return config
    listed, published = config.get(PRETEXTS), _published(config.get(IMAGENET, "auto"))
    if listed is None and published is not None:
        listed = [short_name(str(config["pretext"]["_target_"]))]
    if listed is not None and published:
        listed = [*listed, PUBLISHED]
    listed = config[INITS] if INITS in given else listed
    return {k: v for k, v in config.items() if k not in OLD_INITS} | {INITS: listed}


def renamed_config(config: Node, overrides: Iterable[str] = (), notice: bool = False) -> Node:
    """Return a command's config with current keys. The value of an old key overrides the default of the new one.

    Args:
        config: a plain mapping, with current names in `_target_`.
        overrides: take precedence over old keys in YAML files.
        notice: log a notice for every old key.
    """
    given = {o.lstrip("+").partition("=")[0] for o in overrides}
    config = _with_inits(_renamed_node(config, (), given, notice), given)
    for key in HOLD_OVERRIDES:
        if isinstance(config.get(key), list):
            config[key] = [_renamed_text(v, notice) if isinstance(v, str) else v for v in config[key]]
    return config


def renamed_composed(config: DictConfig, overrides: Iterable[str]) -> DictConfig:
    """Return a config composed by Hydra with current keys, and log a notice for every old key in a YAML file."""
    plain: Any = OmegaConf.to_container(config, resolve=False)
    now = renamed_config(plain, overrides, notice=True)
    if now == plain:
        return config
    renamed = OmegaConf.create(now)
    OmegaConf.set_struct(renamed, True)
    return renamed


def _renamed_node(node: Node, where: tuple[str, ...], given: set[str], notice: bool) -> Node:
    target = str(node.get("_target_"))
    table = {} if where else KEYS
    if target.startswith("sslrun.") and target.endswith(".Augment"):
        table = AUGMENT
    drop = set()
    for old in [k for k in table if k in node]:
        _note(old, table[old], notice)
        drop.add(old if table[old] in node and ".".join((*where, table[old])) in given else table[old])
    return {
        table.get(k, k): _renamed_node(v, (*where, k), given, notice) if isinstance(v, dict) else v
        for k, v in node.items()
        if k not in drop
    }


def _renamed_override(override: str, notice: bool) -> str:
    if match := _OVERRIDE.match(override):
        old = match["key"]
        _note(old, KEYS[old], notice)
        # If a user's own YAML file has only the old key, the new one has to be added.
        sign = match["sign"] or ("++" if old.endswith("augment.tilt") and not match["study"] and match["rest"] else "")
        return f"{sign}{match['study'] or ''}{KEYS[old]}{match['rest'] or ''}"
    key, equals, value = override.partition("=")
    last = key.lstrip("+").removeprefix("finetune.")
    if last in HOLD_OVERRIDES:
        return f"{key}{equals}{_renamed_text(value, notice)}"
    if last.split(".")[-1] == "augment":
        return f"{key}{equals}{_IN_MAPPING.sub(lambda m: _now(m[0], AUGMENT, notice), value)}"
    return override


def _renamed_text(text: str, notice: bool) -> str:
    return _IN_TEXT.sub(lambda m: _now(m[0], KEYS, notice), text)


def _now(old: str, table: dict[str, str], notice: bool) -> str:
    _note(old, table[old], notice)
    return table[old]


def _note(old: str, new: str, notice: bool) -> None:
    old, new = old.rpartition(".")[2], new.rpartition(".")[2]
    if notice and old not in _noted:
        _noted.add(old)
        log.warning("%s is now called %s; the old name is accepted until 0.2.0.", old, new)
