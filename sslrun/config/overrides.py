"""Checking the overrides of a command before anything starts; all mistakes are reported together."""

import copy
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, Sweep
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sslrun.base.errors import UserError
from sslrun.config import hydra_keys
from sslrun.config.check import check
from sslrun.config.commands import FROM_CHECKPOINT, TASKS
from sslrun.config.compose import choices, compose_config, folders, groups
from sslrun.config.grammar import key_of
from sslrun.config.names import key_hint, nearest
from sslrun.config.shape import Shapes, required_key
from sslrun.config.types import Node

_Trial = list[tuple[Override, str]]  # overrides, each with its text for one value of a sweep


def check_overrides(
    stage: str, settings: type, overrides: Sequence[str], config_dir: str | None, multirun: bool
) -> None:
    """Check the overrides and YAML files of a command.

    Args:
        stage: the command.
        settings: settings class of the command.
        overrides: as on the command line.
        config_dir: the user's own config folder.
        multirun: whether the values of sweeps are allowed.

    Raises:
        UserError: one line for each mistake.
    """
    check_signatures(composed_configs(stage, overrides, config_dir, multirun), settings)


def check_signatures(configs: Sequence[DictConfig], settings: type) -> None:
    """Check composed configs against the signatures that they will call; this imports torch.

    Args:
        settings: settings class of the command.

    Raises:
        UserError: one line for each mistake.
    """
    _refuse([line for config in configs for line in check(config, settings)])


def check_shape(stage: str, config: DictConfig, config_dir: str | None) -> None:
    """Check a config against our YAML files, without torch.

    Raises:
        UserError: one line for each mistake.
    """
    _refuse(_shapes(stage, config_dir).mistakes(config))


def _shapes(stage: str, config_dir: str | None) -> Shapes:
    return Shapes(stage, [g for g, group in _stage_groups(stage, config_dir).items() if not group.optional])


def composed_configs(
    stage: str,
    overrides: Sequence[str],
    config_dir: str | None,
    multirun: bool,
    also: Callable[[DictConfig], list[str]] = lambda _: [],
) -> list[DictConfig]:
    """Compose configs in which each value of every sweep occurs at least once, and check them without torch.

    Args:
        stage: the command.
        overrides, config_dir, multirun: see `check_overrides`.
        also: returns further mistakes in a config.

    Raises:
        UserError: one line for each mistake.
    """
    mistakes: list[str] = []
    parsed = list(_parse(overrides, mistakes))
    all_groups = groups(config_dir)
    try:
        in_stage = _stage_groups(stage, config_dir)
    except OSError as error:
        raise UserError(f"cannot read the config: {error}") from None
    good = [o for o in parsed if _check_choice(o, stage, in_stage, all_groups, config_dir, mistakes)]
    good = [o for o in good if hydra_keys.check(o, mistakes)]
    if not multirun:
        for o in [o for o in good if o.is_sweep_override()]:
            mistakes.append(f"{o.input_line}: several values need a sweep; put -m before it")
            good.remove(o)

    for o in [o for o in good if isinstance(o.value(), Glob) and o.key_or_group not in in_stage]:
        mistakes.append(f"{o.input_line}: glob() is for config groups, and {o.key_or_group} is a key")
        good.remove(o)

    for o in [o for o in good if isinstance(s := o.value(), ChoiceSweep) and any(isinstance(v, Sweep) for v in s.list)]:
        mistakes.append(f"{o.input_line}: a list of values cannot contain a sweep")
        good.remove(o)
    dropped = {key_of(text) for text in overrides} - {o.key_or_group for o in good}
    shapes, configs = _shapes(stage, config_dir), []
    compose = _Composer(stage, config_dir)
    try:
        compose(next(_trials(good, config_dir)), in_stage)
    except (HydraException, OmegaConfBaseException):
        missing = _missing(next(_trials(good, config_dir)), compose, in_stage, mistakes)
        good = [o for o in good if o not in missing]
    for trial in _trials(good, config_dir):
        try:
            config = compose(trial, in_stage)
        except (HydraException, OmegaConfBaseException) as error:
            if not _missing(trial, compose, in_stage, mistakes):
                mistakes.append(_first_lines(error))
            break
        mistakes += [*shapes.mistakes(config), *also(config)]
        configs.append(config)
    required = {required_key(key) for key in dropped}  # not required: there is a mistake in what was given
    _refuse([m for m in mistakes if m not in required])
    return configs


class _Composer:
    """Composes the configs of a sweep: once for each choice of groups; values of keys are then updated."""

    def __init__(self, stage: str, config_dir: str | None) -> None:
        self.stage, self.config_dir = stage, config_dir
        self._known: dict[tuple[str, ...], DictConfig] = {}

    def __call__(self, trial: _Trial, in_stage: Container[str]) -> DictConfig:
        plain = {o.key_or_group: line for o, line in trial if o.is_sweep_override() and _is_plain(o, in_stage)}
        fixed = tuple(line for _, line in trial if line not in plain.values())
        if fixed not in self._known:
            self._known[fixed] = compose_config(self.stage, list(fixed), self.config_dir)
        config = copy.deepcopy(self._known[fixed])
        for key, line in plain.items():
            OmegaConf.update(config, key, OverridesParser.create().parse_override(line).value())
        return config


def _refuse(mistakes: Sequence[str]) -> None:
    if mistakes:
        raise UserError("\n".join(dict.fromkeys(mistakes)))


def check_resumed(stage: str, overrides: Sequence[str], config: dict[str, Any], config_dir: str | None) -> None:
    """Check that the keys and choices in the overrides of a resumed run exist.

    Args:
        config: config of the run.

    Raises:
        UserError: one line for each mistake.
    """
    mistakes: list[str] = []
    in_stage, all_groups = _stage_groups(stage, config_dir), groups(config_dir)
    for o in _parse(overrides, mistakes):
        if _is_hydra(o) or not _check_choice(o, stage, in_stage, all_groups, config_dir, mistakes):
            continue
        if o.is_delete() or o.is_sweep_override() or "${" in str(o.value()):
            mistakes.append(f"{o.input_line}: a resumed run takes only plain values")
        elif not _is_group(o, in_stage):
            _check_key(o, OmegaConf.create(config), config_dir, mistakes)
    if mistakes:
        raise UserError("\n".join(mistakes))


def _missing(trial: _Trial, compose: _Composer, in_stage: Container[str], mistakes: list[str]) -> list[Override]:
    """Return the overrides of keys that do not exist with the groups of a trial, and add them to `mistakes`."""
    chosen = [(o, line) for o, line in trial if _is_group(o, in_stage) or _is_hydra(o)]
    try:
        base = compose(chosen, in_stage)
    except (HydraException, OmegaConfBaseException):
        return []
    swept = [line for o, line in chosen if o.is_sweep_override()]
    with_choices = f" with {' '.join(swept)}" if swept else ""
    keys = [o for o, _ in trial if not (_is_group(o, in_stage) or _is_hydra(o))]
    return [o for o in keys if not _check_key(o, base, compose.config_dir, mistakes, with_choices)]


def _first_lines(error: Exception) -> str:
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        hint = nearest(choice, error.options) or "."
        return f"{group}={choice}: no such choice{hint} Choices: {', '.join(error.options)}"
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(("full_key", "object_type", "Set the")))


def _parse(overrides: Sequence[str], mistakes: list[str]) -> Iterator[Override]:
    parser = OverridesParser.create()
    for text in overrides:
        try:
            yield parser.parse_override(text)
        except HydraException as error:
            reason = str(error).splitlines()[0].split(chr(39) + text)[0].split(" expecting ")[0]
            mistakes.append(f"{text}: cannot be parsed ({reason}); quote special characters, as in 'key=\"a value\"'")


@dataclass(frozen=True)
class _Group:
    """A config group of a command, with its default choice and whether it may be null."""

    default: str | None
    optional: bool


def _stage_groups(stage: str, config_dir: str | None) -> dict[str, _Group]:
    """Return the groups of a command by name."""
    path = next(d / f"{stage}.yaml" for d in folders(config_dir) if (d / f"{stage}.yaml").is_file())
    defaults = OmegaConf.to_container(OmegaConf.load(path))["defaults"]  # type: ignore[call-overload,index]
    named = [next(iter(d.items())) for d in defaults if isinstance(d, dict)]
    out = {n.removeprefix("optional "): _Group(choice, n.startswith("optional ")) for n, choice in named}
    for parent in [d for d in defaults if isinstance(d, str) and not d.startswith("_")]:  # the command it extends
        out |= _stage_groups(parent, config_dir)
    return out


def _is_hydra(o: Override) -> bool:
    return o.key_or_group.split(".")[0].split("/")[0] == "hydra"


def _is_plain(o: Override, in_stage: Container[str]) -> bool:
    return not (o.is_add() or o.is_force_add() or o.is_delete() or _is_hydra(o) or _is_group(o, in_stage))


def _is_group(o: Override, in_stage: Container[str]) -> bool:
    return o.key_or_group in in_stage


def _check_choice(
    o: Override,
    stage: str,
    in_stage: dict[str, _Group],
    all_groups: list[str],
    config_dir: str | None,
    mistakes: list[str],
) -> bool:
    group = o.key_or_group
    if group not in all_groups or _is_hydra(o):
        return True
    if group not in in_stage and o.is_add():
        return True  # a group of the user's own
    if group not in in_stage:
        hint = f"; use init={o.value()} to start from the newest {o.value()} run" if group == TASKS else ""
        mistakes.append(f"{o.input_line}: {stage} has no {group}{hint}")
        return False
    if o.is_add() and o.package is None:
        mistakes.append(f"{o.input_line}: the config has a choice of {group} already; remove the +")
        return False
    if isinstance(o.value(), Glob) or (o.is_delete() and in_stage[group].optional):
        return True
    options = choices(group, config_dir)
    values = list(o.sweep_string_iterator()) if o.is_sweep_override() else [str(o.value())]
    bad = [v for v in values if v not in options]
    after_pretraining = in_stage[group].default == FROM_CHECKPOINT
    for v in bad:
        valid = [o for o in options if after_pretraining or o != FROM_CHECKPOINT]
        v = "null" if v == "None" else v
        hint = "; leave it out for none." if v == "null" and in_stage[group].optional else nearest(v, valid) or "."
        own = Path("conf", group, f"{v}.yaml")
        hint = f"; for {own} add -cd conf." if config_dir is None and own.is_file() else hint
        mistakes.append(f"{group}={v}: no such {group}{hint} Choices: {', '.join(valid)}")
    if not after_pretraining and FROM_CHECKPOINT in values:
        mistakes.append(f"{group}={FROM_CHECKPOINT}: {stage} does not start from a checkpoint")
        return False
    return not bad


def _swept(o: Override, config_dir: str | None) -> list[str]:
    value = o.value()
    if isinstance(value, Glob):
        return value.filter(choices(o.key_or_group, config_dir))
    return [str(v) for v in o.sweep_string_iterator()]


def _trials(overrides: Sequence[Override], config_dir: str | None) -> Iterator[_Trial]:
    """Yield sets of overrides in which each value of every sweep occurs at least once."""
    sweeps = {}
    for o in overrides:
        if o.is_sweep_override() and o.is_discrete_sweep():
            key = o.get_key_element()
            sweeps[str(o.input_line)] = [f"{key}={v}" for v in _swept(o, config_dir)]
    n = max((len(v) for v in sweeps.values()), default=1)
    for i in range(n):
        trial = []
        for o in overrides:
            values = sweeps.get(str(o.input_line))
            if values is None and o.is_sweep_override():
                continue  # an interval, from which the sweeper draws
            trial.append((o, values[i % len(values)] if values else str(o.input_line)))
        yield trial


def _check_key(
    o: Override, config: DictConfig, config_dir: str | None, mistakes: list[str], with_choices: str = ""
) -> bool:
    if o.is_add() or o.is_delete():
        return True
    plain: Any = OmegaConf.to_container(config, resolve=False)
    key, depth, node = o.key_or_group, 0, plain
    for name in key.split("."):
        if isinstance(node, dict) and name in node:
            depth, node = depth + 1, node[name]
            continue
        if depth and node == {}:
            return True  # a free mapping, such as dataset.classes
        hint = _of_others(key, config_dir) or key_hint(key, _leaves(plain), str(o.value()))
        mistakes.append(f"{key or o.input_line}: no such key{with_choices}{hint}")
        return False
    return True


def _of_others(key: str, config_dir: str | None) -> str:
    """Return which other choices of a group have a key: `; it is a key of pretext=moco|byol`, or an empty string."""
    group, _, rest = key.partition(".")
    having = []
    for choice in choices(group, config_dir) if rest else []:
        path = next(p for d in folders(config_dir) if (p := d / group / f"{choice}.yaml").is_file())
        if rest in _leaves(OmegaConf.to_container(OmegaConf.load(path), resolve=False)):  # type: ignore[arg-type]
            having.append(choice)
    return f"; it is a key of {group}={'|'.join(having)}" if having else ""


def keys_of(stage: str, config_dir: str | None) -> list[str]:
    """Return the keys of a command's default config, dotted."""
    config: Any = OmegaConf.to_container(compose_config(stage, [], config_dir), resolve=False)
    return _leaves(config)


def _leaves(config: Node, prefix: str = "") -> list[str]:
    out = []
    for key, value in config.items():
        inner = _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else []
        out += [f"{prefix}{key}", *inner]
    return [name for name in out if not name.endswith("_target_")]
