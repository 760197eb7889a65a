"""From nodes of the config to objects.

A config node with a `_target_` is built by calling that function or class. The node's keys are the target's
keyword-only parameters, no more and no fewer; what sslrun itself supplies (a network, a device) comes first, by
position. Types and ranges stand in the signature, as annotations, and nowhere else.
"""

import functools
import importlib
import inspect
import typing
from collections.abc import Callable
from keyword import iskeyword
from pathlib import Path
from typing import Any

from sslrun.base.errors import UserError, described
from sslrun.base.paths import CONF
from sslrun.config.renames import renamed_config
from sslrun.config.types import Node

# What runs and checkpoints of 0.1.0 name in their configs, and what it is called now.
RENAMED = {
    "sslrun.train.fit": "sslrun.training.settings.Training",
    "sslrun.views.Augment": "sslrun.augment.Augment",
    **{f"sslrun.optimizers.{n}": f"sslrun.training.optimizers.{n}" for n in ("adam", "adamw", "sgd", "lars")},
    **{f"sslrun.backbones.{n}": f"sslrun.models.backbones.{n}.{n}" for n in ("smallcnn", "resnet18", "mobilenetv2")},
    "sslrun.pretext.rotation.Rotation": "sslrun.tasks.pretext.rotation.Rotation",
    "sslrun.pretext.jigsaw.Jigsaw": "sslrun.tasks.pretext.jigsaw.Jigsaw",
    "sslrun.pretext.simclr.SimCLR": "sslrun.tasks.pretext.simclr.SimCLR",
    **{
        f"sslrun.data.sources.{n}": f"sslrun.data.sources.{n}.{n}"
        for n in ("digits", "fashion_mnist", "cifar10", "stl10", "flowers", "flowers102", "tinyimagenet", "folder")
    },
}


def renamed(config: Any) -> Any:
    """Return the config of a run or a checkpoint with the names of 0.1.0 replaced by those of today."""
    return renamed_config(_with_targets(config)) if isinstance(config, dict) else config


def _with_targets(node: Any) -> Any:
    if isinstance(node, dict):
        target = node.get("_target_")
        new = {"_target_": RENAMED[target]} if isinstance(target, str) and target in RENAMED else {}
        return {k: _with_targets(v) for k, v in node.items()} | new
    return [_with_targets(v) for v in node] if isinstance(node, list) else node


def locate(path: str) -> Callable[..., Any]:
    """Import the function or class that a `_target_` names.

    Raises:
        UserError: there is no such module or name.
    """
    module, _, name = path.rpartition(".")
    now = f"; it is called {RENAMED[path]} now" if path in RENAMED else ""
    try:
        target: Any = getattr(importlib.import_module(module), name)
    except Exception as error:  # of any kind: the module may be the user's
        raise UserError(f"_target_ {path!r} cannot be imported: {_reason(error, path)}{now}") from error
    if not callable(target):
        raise UserError(f"_target_ {path!r} is no function or class{now}")
    located: Callable[..., Any] = target
    return located


def _reason(error: Exception, path: str) -> str:
    first = path.split(".")[0]
    if isinstance(error, ModuleNotFoundError) and error.name == first:
        return f"{error}; run sslrun in the folder that has {first}.py"
    return str(error) if first == "sslrun" else described(error)


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
                f"{source} would call {target}, which is neither sslrun's nor in a Python file of this folder: refused."
                f" If it is yours, run sslrun in the folder that has {str(target).split('.')[0]}.py"
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
    from hydra.utils import instantiate

    return instantiate(node, _partial_=True, _convert_="all")


def build(node: Node, *supplied: Any) -> Any:
    """Build what a node describes; `supplied` are the arguments that come from sslrun, by position.

    Raises:
        UserError: the constructor refuses the values (its `ValueError`, in its words).
    """
    try:
        return function(node)(*supplied)
    except ValueError as error:
        raise UserError(f"{node['_target_'].rsplit('.', 1)[-1]}: {error}") from error


def settings_of(stage: Callable[..., Any]) -> type:
    """Return the dataclass of a command's settings, the second parameter of its function."""
    second = list(inspect.signature(stage).parameters)[1]
    settings: type = typing.get_type_hints(stage)[second]
    return settings


def built_settings(settings: type, config: Node) -> Any:
    """Return a command's settings with the values of a config."""
    return settings(**{k + "_" * iskeyword(k): v for k, v in config.items()})
