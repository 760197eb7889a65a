"""The config: where it lies, what may stand in it, and building objects from it.

A config node with a `_target_` is built by calling that function or class. The node's keys are the target's
keyword-only parameters, no more and no fewer; what sslrun itself supplies (a network, a device) comes first, by
position. Types and ranges stand in the signature, as annotations, and nowhere else.
"""

import difflib
import importlib
import inspect
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, Field, ValidationError, create_model

from sslrun.errors import UserError

FROM_CHECKPOINT = "from_checkpoint"
_PACKAGED = Path(__file__).parent / "conf"
CONF = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parent.parent / "conf"

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


def parameters(target: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Return the keyword-only parameters of a function or class as name -> (annotation, default)."""
    function = target.__init__ if inspect.isclass(target) else target
    hints = typing.get_type_hints(function, include_extras=True)
    empty = inspect.Parameter.empty
    return {
        p.name: (hints.get(p.name, Any), ... if p.default is empty else p.default)
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
        given = {k: v for k, v in value.items() if v is not None}
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
        "string_type": "text",
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


# ------------------------------------------------------------------------------------------- checking overrides


def folders(config_dir: str | None = None) -> list[Path]:
    """Return the folders that hold config files: the user's own, if one was named, and ours."""
    return [*([Path(config_dir)] if config_dir else []), CONF]


def choices(group: str, config_dir: str | None = None) -> list[str]:
    """Return the options of a config group by the names of its files."""
    found = {p.stem for d in folders(config_dir) for p in (d / group).glob("*.yaml")}
    return sorted(n for n in found if not n.startswith("_"))


def groups(config_dir: str | None = None) -> list[str]:
    """Return the names of the config groups."""
    return sorted({p.name for d in folders(config_dir) for p in d.iterdir() if p.is_dir() and p.name != "hydra"})


def check_overrides(stage: str, overrides: Sequence[str], config_dir: str | None, multirun: bool) -> None:
    """Check everything that was asked for on the command line and in YAML, before anything starts.

    Raises:
        UserError: with a line for every mistake.
    """
    mistakes: list[str] = []
    parsed = list(_parse(overrides, mistakes))
    all_groups = groups(config_dir)
    try:
        in_stage = _stage_groups(stage, config_dir)
    except OSError as error:
        raise UserError(f"cannot read the config: {error}") from None
    good = [o for o in parsed if _check_choice(o, stage, in_stage, all_groups, config_dir, mistakes)]
    if not multirun:
        for o in [o for o in good if o.is_sweep_override()]:
            mistakes.append(f"{o.input_line}: several values make a sweep; put -m before it")
            good.remove(o)

    function = locate(f"sslrun.stages.{stage}.{stage}")
    for trial in _trials(good):
        chosen: list[str] = [line for o, line in trial if _is_group(o, in_stage)]
        settings = [(o, line) for o, line in trial if not _is_group(o, in_stage)]
        try:
            base = _compose(stage, [*chosen, *(str(o.input_line) for o, _ in settings if _is_hydra(o))], config_dir)
            known = [(o, s) for o, s in settings if not _is_hydra(o) and _check_key(o, base, mistakes)]
            config = _compose(stage, [*chosen, *(line for _, line in known)], config_dir)
        except (HydraException, OmegaConfBaseException) as error:
            mistakes.append(_first_lines(error))
            continue
        mistakes += check(config, function)
    if mistakes:
        raise UserError("\n".join(dict.fromkeys(mistakes)))


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(("full_key", "object_type", "Set the")))


def _parse(overrides: Sequence[str], mistakes: list[str]) -> Iterator[Override]:
    parser = OverridesParser.create()
    for text in overrides:
        try:
            yield parser.parse_override(text)
        except HydraException as error:
            reason = str(error).splitlines()[0].split(chr(39) + text)[0]
            mistakes.append(
                f"{text}: cannot be read ({reason}); put odd characters into quotes, as in 'key=\"a value\"'"
            )


def _stage_groups(stage: str, config_dir: str | None) -> list[str]:
    path = next(d / f"{stage}.yaml" for d in folders(config_dir) if (d / f"{stage}.yaml").is_file())
    defaults = OmegaConf.to_container(OmegaConf.load(path))["defaults"]  # type: ignore[call-overload,index]
    return [next(iter(d)).removeprefix("optional ") for d in defaults if isinstance(d, dict)]


def _is_hydra(o: Override) -> bool:
    return o.key_or_group.split(".")[0].split("/")[0] == "hydra"


def _is_group(o: Override, in_stage: list[str]) -> bool:
    return o.key_or_group in in_stage


def _check_choice(
    o: Override,
    stage: str,
    in_stage: list[str],
    all_groups: list[str],
    config_dir: str | None,
    mistakes: list[str],
) -> bool:
    group = o.key_or_group
    if group not in all_groups or _is_hydra(o):
        return True
    if group not in in_stage:
        hint = f"; say init={o.value()} to start from the newest {o.value()} run" if group == "pretext" else ""
        mistakes.append(f"{o.input_line}: {stage} has no {group}{hint}")
        return False
    options = choices(group, config_dir)
    values = list(o.sweep_string_iterator()) if o.is_sweep_override() else [str(o.value())]
    bad = [v for v in values if v not in [*options, "None", "null"]]
    for v in bad:
        mistakes.append(f"{group}={v}: no such {group}{nearest(v, options)} Choices: {', '.join(options)}")
    if stage == "pretrain" and FROM_CHECKPOINT in values:
        mistakes.append(f"{group}={FROM_CHECKPOINT}: pretrain starts from no checkpoint")
        return False
    return not bad


def _trials(overrides: Sequence[Override]) -> Iterator[list[tuple[Override, str]]]:
    """Yield sets of overrides in which each value of every sweep stands at least once."""
    sweeps = {}
    for o in overrides:
        if o.is_sweep_override() and o.is_discrete_sweep():
            key = o.get_key_element()
            sweeps[str(o.input_line)] = [f"{key}={v}" for v in o.sweep_string_iterator()]
    rounds = max((len(v) for v in sweeps.values()), default=1)
    for i in range(rounds):
        trial = []
        for o in overrides:
            values = sweeps.get(str(o.input_line))
            if values is None and o.is_sweep_override():
                continue  # an interval: the sweeper draws from it
            trial.append((o, values[i % len(values)] if values else str(o.input_line)))
        yield trial


def _check_key(o: Override, config: DictConfig, mistakes: list[str]) -> bool:
    if o.is_add() or o.is_delete():
        return True
    key, passed = o.key_or_group, []
    node: Any = config
    for part in key.split("."):
        if OmegaConf.is_dict(node) and not node._is_none() and part in node.keys():  # noqa: SIM118 (`in` denies ???)
            passed.append(part)
            node = node._get_node(part)
            continue
        if passed and OmegaConf.is_dict(node) and not node:
            return True  # a free mapping, such as dataset.classes
        mistakes.append(f"{key}: no such key{nearest(key, _leaves(config))}")
        return False
    return True


def _leaves(config: Any, prefix: str = "") -> list[str]:
    out = []
    for key in config:
        node = config._get_node(key)
        inner = OmegaConf.is_dict(node) and not node._is_none() and not node._is_interpolation()
        out += [f"{prefix}{key}", *_leaves(node, f"{prefix}{key}.")] if inner else [f"{prefix}{key}"]
    return [name for name in out if not name.endswith("_target_")]


def _compose(stage: str, overrides: list[str], config_dir: str | None) -> DictConfig:
    from hydra.core.global_hydra import GlobalHydra

    if config_dir:
        overrides = [*overrides, f"hydra.searchpath=['file://{Path(config_dir).resolve()}']"]
    inside = GlobalHydra.instance().is_initialized()
    with nullcontext() if inside else initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        return compose(config_name=stage, overrides=overrides)


def compose_nodes(stage: str, *names: str) -> list[Node]:
    """Return some nodes of a stage's default config."""
    config: dict[str, Any] = OmegaConf.to_container(_compose(stage, [], None), resolve=True)  # type: ignore[assignment]
    return [config[n] for n in names]
