"""Nodes of a config as plain mappings."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sslrun.config.types import Node


def plain(config: DictConfig) -> Node:
    """Return a config as a plain mapping, resolved, with what is missing as `???`."""
    values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    return values


def flattened(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested config as one mapping with dotted keys."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        out |= flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


def short_name(target: str) -> str:
    """Return the name on the command line of what a `_target_` builds.

    `sslrun.tasks.pretext.simclr.SimCLR` -> `simclr`.
    """
    module, _, name = target.rpartition(".")
    return name if name.islower() else module.rpartition(".")[2]


def overlaid(group: str, node: Node, requested: Node, overrides: Mapping[str, str]) -> Node:
    """Return a node with the keys that were asked for on the command line, or beside `from_checkpoint`."""
    from_checkpoint = requested.get("_target_") is None
    wins = {k for k, v in requested.items() if f"{group}.{k}" in overrides or (from_checkpoint and v is not None)}
    return {**node, **{k: requested[k] for k in wins}}
