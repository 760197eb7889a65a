"""The config: where it lies, what may stand in it, and building objects from it.

A config node with a `_target_` is built by calling that function or class. The node's keys are the target's
keyword-only parameters, no more and no fewer; what sslrun itself supplies (a network, a device) comes first, by
position. Types and ranges stand in the signature, as annotations, and nowhere else.
"""

import difflib
import functools
import importlib
import inspect
import typing
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, Field, ValidationError, create_model

from sslrun import CONF
from sslrun.errors import UserError

FROM_CHECKPOINT = "from_checkpoint"

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]  # a part that leaves something over
PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Pair = Annotated[list[NotNegative], Field(min_length=2, max_length=2)]


class Also:
    """Marks a node that takes the keyword-only parameters of a second function besides its target's."""

    def __init__(self, path: str) -> None:
        self.path = path


Node = dict[str, Any]
DatasetNode = Annotated[dict[str, Any], Also("sslrun.data.dataset.Options")]


def nearest(name: str, names: Sequence[str]) -> str:
    """Return `"; did you mean X?"` for the most similar name, or the empty string."""
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if not found:  # `epochs` for `train.epochs`
        leaves = {n.rsplit(".", 1)[-1]: n for n in reversed(names)}
        found = [leaves[m] for m in difflib.get_close_matches(name.rsplit(".", 1)[-1], list(leaves), 1, 0.6)]
    return f"; did you mean {found[0]}?" if found else ""


def locate(path: str) -> Callable[..., Any]:
    """Import the function or class that a `_target_` names.

    Raises:
        UserError: there is no such module or name.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"_target_ {path!r} cannot be imported: {error}") from None


def refuse_foreign(node: Any, source: Path | str) -> None:
    """Let a config that was read from a file call nothing but what our config files name, and the user's code here.

    A checkpoint or a run may come from anybody, and a `_target_` in it could be any function of any package.

    Raises:
        UserError: it names something else.
    """
    if isinstance(node, dict):
        target = node.get("_target_")
        if target is not None and not (isinstance(target, str) and (target in _our_targets() or _is_here(target))):
            raise UserError(
                f"{source} would call {target}, which is neither sslrun's nor in a Python file of this folder: refused"
            )
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        refuse_foreign(value, source)


@functools.cache
def _our_targets() -> set[str]:
    lines = [line for path in CONF.rglob("*.yaml") for line in path.read_text(encoding="utf-8").splitlines()]
    return {line.split()[1] for line in lines if line.strip().startswith("_target_: ")}


def _is_here(target: str) -> bool:
    """Tell whether a target is in a module of the working directory, which is the user's own."""
    first = target.split(".")[0]
    return any(p.is_file() for p in (Path(f"{first}.py"), Path(first) / "__init__.py")) and first != "sslrun"


def parameters(target: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Return the keyword-only parameters of a function or class as name -> (annotation, default).

    A key that Python keeps for itself is a parameter with an underscore behind it: `in_`.
    """
    function = target.__init__ if inspect.isclass(target) else target
    hints = typing.get_type_hints(function, include_extras=True)
    empty = inspect.Parameter.empty
    return {
        p.name.removesuffix("_"): (hints.get(p.name, Any), ... if p.default is empty else p.default)
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    }


def function(node: Node) -> Callable[..., Any]:
    """Return the target of a node with the node's keys filled in; nested nodes are built."""
    return instantiate(node, _partial_=True, _convert_="all")


def build(node: Node, *supplied: Any) -> Any:
    """Build what a node describes; `supplied` are the arguments that come from sslrun, by position.

    Raises:
        UserError: the constructor refuses the values (its `ValueError`, in its words).
    """
    try:
        return function(node)(*supplied)
    except ValueError as error:
        raise UserError(f"{node['_target_'].rsplit('.', 1)[-1]}: {error}") from None


# ---------------------------------------------------------------------------------------------- checking values


def check(config: DictConfig, stage: Callable[..., Any]) -> list[str]:
    """Hold a composed config against the signatures that it will call; return one line for each mistake."""
    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:
        return [f"{error.full_key or 'config'}: {str(error).splitlines()[0]}"]
    raw = OmegaConf.to_container(config, resolve=False)
    return _check_call(values, raw, stage, (), None)


def _check_call(
    values: Any,
    raw: Any,
    target: Callable[..., Any],
    where: tuple[str, ...],
    also: str | None,
    complete: bool = True,
) -> list[str]:
    fields = parameters(target) | (parameters(locate(also)) if also else {})
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
            mistakes.append(f"{_dotted((*where, key))}: must be given, say {_dotted((*where, key))}=...")
            fields[key] = (Any, None)
        if value is None and isinstance(raw[key], str) and raw[key].startswith("${"):
            continue  # known only once the checkpoint is read
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
    return "_target_" in value or annotation in (Node, DatasetNode)


def _check_node(value: dict[str, Any], raw: Any, annotation: Any, where: tuple[str, ...]) -> list[str]:
    also = next((m.path for m in getattr(annotation, "__metadata__", ()) if isinstance(m, Also)), None)
    if value.get("_target_") is None:
        if where[0] not in ("dataset", "backbone") or "_target_" not in value:
            return [f"{_dotted(where)}: has no _target_, so there is nothing to build"]
        given = {k: v for k, v in value.items() if v is not None and k != "root"}  # root is the source's to check
        return _check_call(given, raw, locate(also), where, None, complete=False) if also else []
    try:
        target = locate(value["_target_"])
    except UserError as error:
        return [f"{_dotted(where)}: {error}"]
    return _check_call(value, raw, target, where, also)


def _dotted(where: Sequence[Any]) -> str:
    return ".".join(str(w) for w in where)


def _sentences(error: ValidationError, where: tuple[str, ...], names: list[str]) -> list[str]:
    """Turn pydantic's errors into our lines; the branches of a union become one line."""
    lines: dict[str, list[str]] = {}
    for e in error.errors():
        key = str(e["loc"][0]).removeprefix("f_")
        dotted = _dotted((*where, key))
        if e["type"] == "extra_forbidden":
            lines.setdefault(f"{dotted}: no such key{nearest(dotted, [_dotted((*where, n)) for n in names])}", [])
        elif e["type"] == "missing":
            lines.setdefault(f"{dotted}: must be given, say {dotted}=...", [])
        else:
            lines.setdefault(dotted, []).append(_wanted(e))
            lines[dotted + "\0"] = [f", found {_found(error, e, key)}"]
    out = []
    for head, wanted in lines.items():
        if head.endswith("\0"):
            continue
        tail = lines.get(head + "\0", [""])[0]
        out.append(f"{head}: must be {' or '.join(dict.fromkeys(wanted))}{tail}" if wanted else head)
    return out


def _found(error: ValidationError, e: Any, key: str) -> str:
    value = e["input"]
    text = value if isinstance(value, str) else "null" if value is None else repr(value)
    choices = [c.strip("' ") for c in str(e.get("ctx", {}).get("expected", "")).replace(" or ", ",").split(",")]
    return f"{text!s}{nearest(text, choices) if isinstance(value, str) and any(choices) else ''}"


def _wanted(e: Any) -> str:
    words = {
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "bool_type": "true or false",
        "string_type": "text, a number in quotes",
        "list_type": "a list",
        "dict_type": "a mapping",
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


# ---------------------------------------------------------------------------------------------- where it lies


def folders(config_dir: str | None = None) -> list[Path]:
    """Return the folders that hold config files, in Hydra's order: ours, and the user's own, if one was named."""
    return [CONF, *([Path(config_dir)] if config_dir else [])]


def choices(group: str, config_dir: str | None = None) -> list[str]:
    """Return the options of a config group by the names of its files."""
    found = {p.stem for d in folders(config_dir) for p in (d / group).glob("*.yaml")}
    return sorted(n for n in found if not n.startswith("_"))


def groups(config_dir: str | None = None) -> list[str]:
    """Return the names of the config groups."""
    return sorted({p.name for d in folders(config_dir) for p in d.iterdir() if p.is_dir() and p.name != "hydra"})


def compose_config(stage: str, overrides: list[str], config_dir: str | None) -> DictConfig:
    """Compose a stage's config as Hydra does, with the user's own config folder if there is one."""
    if config_dir:
        overrides = [*overrides, f"hydra.searchpath=['file://{Path(config_dir).resolve()}']"]
    inside = GlobalHydra.instance().is_initialized()
    with nullcontext() if inside else initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        return compose(config_name=stage, overrides=overrides)


def compose_nodes(stage: str, *names: str) -> list[Node]:
    """Return some nodes of a stage's default config."""
    config: dict[str, Any] = OmegaConf.to_container(compose_config(stage, [], None), resolve=True)  # type: ignore[assignment]
    return [config[n] for n in names]
