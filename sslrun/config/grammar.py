"""Writing config values in Hydra's override grammar (`key=value`)."""

import re
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import OmegaConf

from sslrun.config.types import Node


def key_of(override: str) -> str:
    """Return the key that an override sets, adds or deletes."""
    return override.lstrip("+~").partition("=")[0]


def quoted(text: str) -> str:
    """Quote any text for Hydra's override grammar, and escape `${`, which OmegaConf would interpolate."""
    plain = re.sub(r"(\\*)\$\{", lambda before: 2 * before[1] + r"\${", text)
    return str(QuotedString(text=plain, quote=Quote.single).with_quotes())


def literal(value: Any) -> str:
    """Return a value in Hydra's override grammar."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list):
        return f"[{','.join(map(literal, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{_escaped(str(k))}:{literal(v)}" for k, v in value.items()) + "}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def with_override(config: Node, override: str) -> Node:
    """Return a resolved config with one override, `key=value`, of a key that it has."""
    parsed = OverridesParser.create().parse_override(override)
    changed = OmegaConf.create(config)
    OmegaConf.update(changed, parsed.key_or_group, parsed.value())
    return OmegaConf.to_container(changed, resolve=True)  # type: ignore[return-value]


def _escaped(key: str) -> str:
    """Return a key of a mapping, escaped, since the grammar does not allow quotes there."""
    return "".join(f"\\{c}" if c in "\\()[]{}:=, \t" else c for c in key)


def differing(wanted: Node, base: Node, prefix: str = "") -> list[str]:
    """Return the overrides that turn the resolved config `base` into `wanted`."""
    out = []
    if wanted.get("_target_") != base.get("_target_"):
        removed = [key for key in base if key not in wanted]
        out += [f"{prefix}{key}=0" for key in removed if base[key] is None]  # Hydra does not remove a key that is null
        out += [f"~{prefix}{key}" for key in removed]
    for key, value in wanted.items():
        before = base.get(key)
        if isinstance(value, dict) and isinstance(before, dict) and before:
            out += differing(value, before, f"{prefix}{key}.")
        elif key not in base:
            out.append(f"+{prefix}{key}={literal(value)}")
        elif value != before:
            out.append(f"{prefix}{key}={literal(value)}")
    return out
