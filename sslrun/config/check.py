"""Checking a config against the signatures of what it builds: keys, types and ranges."""

from collections.abc import Callable, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, Field, ValidationError, create_model

from sslrun.base.errors import UserError
from sslrun.config.build import locate, parameters
from sslrun.config.contract import Contract
from sslrun.config.names import key_hint, list_hint, nearest
from sslrun.config.types import Also, FromCheckpoint, Node, Supplied


def check(config: DictConfig, settings: type) -> list[str]:
    """Check a composed config against the signatures that it will call; return one line for each mistake.

    Args:
        config: composed config of a command.
        settings: settings class of the command.
    """
    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:
        return [f"{error.full_key or 'config'}: {str(error).splitlines()[0]}"]
    raw = OmegaConf.to_container(config, resolve=False)
    return _check_call(values, raw, settings, (), None)


def _check_call(
    values: Any,
    raw: Any,
    target: Callable[..., Any],
    where: tuple[str, ...],
    also: Any,
    complete: bool = True,
) -> list[str]:
    fields = parameters(target) | (parameters(also) if also else {})
    if not complete:
        fields = {k: v for k, v in fields.items() if k in values}
    mistakes: list[str] = []
    mine = {}
    for key, value in values.items():
        if key == "_target_":
            continue
        annotation = fields.get(key, (Any, None))[0]
        if key in fields and isinstance(value, dict) and _is_node(annotation, value):
            mistakes += _check_node(value, raw[key], annotation, (*where, key))
            fields[key] = (Any, None)
        if value == "???":
            mistakes.append(f"{_dotted((*where, key))}: required; set {_dotted((*where, key))}=...")
            fields[key] = (Any, None)
        if value is None and isinstance(raw[key], str) and raw[key].startswith("${"):
            continue  # known once the checkpoint is loaded
        mine[key] = value
    known_later = {k for k in values if k not in mine and k != "_target_"}
    model = create_model(  # type: ignore[call-overload]
        "Config",
        __config__=ConfigDict(
            extra="forbid",
            strict=True,
            allow_inf_nan=False,
            arbitrary_types_allowed=True,
            protected_namespaces=(),
        ),
        **{f"f_{k}": (a, Field(None if k in known_later else d, alias=k)) for k, (a, d) in fields.items()},
    )
    try:
        model.model_validate(mine)
    except ValidationError as error:
        mistakes += _sentences(error, where, list(fields))
    return mistakes


def _is_node(annotation: Any, value: dict[str, Any]) -> bool:
    return "_target_" in value or annotation == Node or getattr(annotation, "__origin__", None) == Node


def _check_node(value: dict[str, Any], raw: Any, annotation: Any, where: tuple[str, ...]) -> list[str]:
    marks = getattr(annotation, "__metadata__", ())
    mark = next((m for m in marks if isinstance(m, Also)), None)
    also = mark and mark.of
    if value.get("_target_") is None:
        if "_target_" not in value or not any(isinstance(m, FromCheckpoint) for m in marks):
            return [f"{_dotted(where)}: no _target_; name the function or class to build"]
        if mark is None:
            return []
        given = {k: v for k, v in value.items() if v is not None and k not in mark.without}
        return _check_call(given, raw, mark.of, where, None, complete=False)
    try:
        target = locate(value["_target_"])
    except UserError as error:
        return [f"{_dotted(where)}: {error}"]
    supplied = next((m for m in marks if isinstance(m, Supplied)), None)
    try:
        if supplied:
            Contract(where[-1], value["_target_"]).check_parameters(supplied.names)
    except UserError as error:
        return [str(error)]
    return _check_call(value, raw, target, where, also)


def _dotted(where: Sequence[Any]) -> str:
    return ".".join(str(w) for w in where)


def _sentences(error: ValidationError, where: tuple[str, ...], names: list[str]) -> list[str]:
    """Convert pydantic's errors to lines of ours; the branches of a union become one line."""
    lines: dict[str, list[str]] = {}
    for e in error.errors():
        key = str(e["loc"][0]).removeprefix("f_")
        dotted = _dotted((*where, key))
        if e["type"] == "extra_forbidden":
            lines.setdefault(f"{dotted}: no such key{key_hint(dotted, [_dotted((*where, n)) for n in names])}", [])
        elif e["type"] == "missing":
            lines.setdefault(f"{dotted}: required; set {dotted}=...", [])
        else:
            lines.setdefault(dotted, []).append(_expected(e))
            hint = list_hint(dotted, e["input"]) if e["type"] == "list_type" else ""
            lines[dotted + "\0"] = [f", found {_shown_value(error, e, key)}{hint}"]
    out = []
    for head, expected in lines.items():
        if head.endswith("\0"):
            continue
        tail = lines.get(head + "\0", [""])[0]
        joined = " or ".join(dict.fromkeys(expected)).replace(" or one of ", " or ")
        out.append(f"{head}: must be {joined}{tail}" if expected else head)
    return out


def _shown_value(error: ValidationError, e: Any, key: str) -> str:
    value = e["input"]
    text = value if isinstance(value, str) else "null" if value is None else repr(value)
    choices = [c.strip("' ") for c in str(e.get("ctx", {}).get("expected", "")).replace(" or ", ",").split(",")]
    return f"{text!s}{nearest(text, choices) if isinstance(value, str) and any(choices) else ''}"


def _expected(e: Any) -> str:
    words = {
        "int_type": "an integer",
        "int_from_float": "an integer",
        "float_type": "a number",
        "bool_type": "true or false",
        "string_type": "text (put a number in quotes)",
        "list_type": "a list",
        "dict_type": "a mapping",
        "is_instance_of": "a mapping",
        "none_required": "null",
        "finite_number": "a finite number",
    }
    limits = {"greater_than": ("gt", "greater than"), "greater_than_equal": ("ge", "at least")}
    limits |= {"less_than": ("lt", "less than"), "less_than_equal": ("le", "at most")}
    limits |= {
        "too_short": ("min_length", "a list of at least"),
        "too_long": ("max_length", "a list of at most"),
    }
    if e["type"] in words:
        return words[e["type"]]
    if e["type"] in limits:
        key, word = limits[e["type"]]
        return f"{word} {e['ctx'][key]}"
    if e["type"] == "literal_error":
        return f"one of {e['ctx']['expected'].replace(chr(39), '')}"
    return e["msg"][0].lower() + e["msg"][1:]
