"""Nodes of a config as plain mappings."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sslrun.config.types import Node


def plain(config: DictConfig) -> Node:
    """Return a config as a plain, resolved mapping; missing values are `???`."""
    values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    return values


def flattened(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested config as a flat mapping with dotted keys."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        out |= flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


def short_name(target: str) -> str:
    """Return the name of a `_target_` on the command line.

    `sslrun.tasks.pretext.simclr.SimCLR` -> `simclr`.
    """
    module, _, name = target.rpartition(".")
    return name if name.islower() else module.rpartition(".")[2]


def network_name(node: Node) -> str:
    """Return the name of a backbone: `resnet18`, or that within a library, such as `convnext_atto`."""
    name = node.get("name")
    return name if isinstance(name, str) and name != "???" else short_name(node["_target_"])


def overlaid(group: str, node: Node, requested: Node, overrides: Mapping[str, str]) -> Node:
    """Return a node with values replaced by those given on the command line or along with `from_checkpoint`.

    Args:
        group: config group of the node.
        node: of a checkpoint.
        requested: the node as composed.
        overrides: of the command line, by key.
    """
    from_checkpoint = requested.get("_target_") is None
    wins = {k for k, v in requested.items() if f"{group}.{k}" in overrides or (from_checkpoint and v is not None)}
    return {**node, **{k: requested[k] for k in wins}}


def same_root(a: Node, b: Node) -> bool:
    """Return whether two data sets are in the same folder, however it is written."""
    roots = [str(Path(os.path.expanduser(n["root"])).resolve()) if n.get("root") else None for n in (a, b)]
    return roots[0] == roots[1]
