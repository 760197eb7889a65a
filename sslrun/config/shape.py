"""Checking a config against our YAML files: unknown keys, missing values, values of another type.

This needs no signatures and therefore no torch, so these mistakes are reported at once. Ranges and choices are in
signatures; see `check`.
"""

import functools
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sslrun.base.paths import CONF
from sslrun.config.compose import choices, compose_config
from sslrun.config.names import key_hint, list_hint
from sslrun.config.types import Node

LISTS = {"an integer": "integers", "a number": "numbers", "text": "text", "a list": "lists"}
OPEN = (None, "auto", "???")  # defaults that say nothing about the type


class Shapes:
    """The reference configs of a command, from our YAML files.

    Args:
        stage: the command.
        groups: config groups of the command.
    """

    def __init__(self, stage: str, groups: list[str]) -> None:
        self.stage = stage
        self._targets = {g: {_file(g, c).get("_target_", ""): c for c in reversed(choices(g))} for g in groups}

    def mistakes(self, config: DictConfig) -> list[str]:
        """Return one line for each mistake in a composed config."""
        try:
            values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
        except OmegaConfBaseException as error:
            if (
                OmegaConf.is_dict(node := config.get("dataset"))
                and not node.keys() & _file("dataset", "_shared").keys()
            ):
                return ["dataset: its YAML lacks the keys of every data set; begin it with defaults: [_shared, _self_]"]
            return [f"{error.full_key or 'config'}: {str(error).splitlines()[0]}"]
        return _compared(values, OmegaConf.to_container(config, resolve=False), self.like(values), "")

    def like(self, values: Node) -> Node:
        """Return our config with the same targets; nodes with the user's own targets are unchanged."""
        chosen, own = [], []
        for group, by_target in self._targets.items():
            node = values.get(group)
            if not isinstance(node, dict):
                continue
            if "_target_" in node and node["_target_"] in by_target:
                chosen.append(f"{group}={by_target[node['_target_']]}")
            else:
                own.append(group)
        return {**_ours(self.stage, *chosen), **{g: values[g] for g in own}}


def required_key(key: str) -> str:
    """Return the line for a key without a value."""
    return f"{key}: required; set {key}=..."


@functools.cache
def _ours(stage: str, *chosen: str) -> Node:
    """Return the config of a command with these choices from our files."""
    config = compose_config(stage, list(chosen), None)
    values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    return {k: _completed(k, v) for k, v in values.items()}


@functools.cache
def _file(group: str, choice: str) -> Node:
    path = CONF / group / f"{choice}.yaml"
    node: Any = OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else {}
    return node


def _completed(group: str, node: Any) -> Any:
    """Return a node with its null values replaced by those of the group's `_shared.yaml`."""
    if not isinstance(node, dict):
        return node
    shared = _file(group, "_shared")
    return {k: shared.get(k) if v is None else v for k, v in node.items()}


def _compared(values: Node, raw: Any, like: Node, prefix: str) -> list[str]:
    out: list[str] = []
    for name, value in values.items():
        key, default = f"{prefix}{name}", like.get(name)
        if name == "_target_":
            continue
        if name not in like:
            out.append(f"{key}: no such key{key_hint(key, [f'{prefix}{n}' for n in like if n != '_target_'])}")
        elif value == "???":
            out.append(required_key(key))
        elif isinstance(value, dict) and isinstance(default, dict):
            if "_target_" in default and value.get("_target_") == default["_target_"]:
                out += _compared(value, raw[name], default, f"{key}.")
        elif isinstance(raw[name], str) and raw[name].startswith("${"):
            continue  # reported for the key that it refers to
        elif (expected := _expected(value, default)) is not None:
            hint = list_hint(key, value) if isinstance(default, list) else ""
            out.append(f"{key}: must be {expected}, found {_shown(value)}{hint}")
    return out


def _expected(value: Any, default: Any) -> str | None:
    """Return the expected type in words; None if the value has it, or if the default does not show it."""
    if value in (None, "auto") or default in OPEN:
        return None
    if isinstance(value, list) and isinstance(default, list):
        kinds = {_kind(v) for v in default}
        wrong = len(kinds) == 1 and any(_expected(v, default[0]) for v in value)
        return f"a list of {LISTS.get(kind := kinds.pop(), kind)}" if wrong else None
    whole = isinstance(default, float) and _kind(value) == "an integer"
    return None if whole or _kind(value) == _kind(default) else _kind(default)


def _kind(value: Any) -> str:
    """Return the type of a value in words."""
    kinds = {bool: "true or false", int: "an integer", float: "a number", str: "text", list: "a list"}
    return kinds.get(type(value), "a mapping")


def _shown(value: Any) -> str:
    if isinstance(value, str) and not value[:1].isdigit():
        return value
    return str(value).lower() if isinstance(value, bool) else repr(value)
