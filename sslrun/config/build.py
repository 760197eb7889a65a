"""Building objects from nodes of the config.

A config node with a `_target_` is built by calling that function or class. The node's keys are exactly the target's
keyword-only parameters; what sslrun itself supplies (a network, a device) is passed first, by position. Types and
ranges are defined by the annotations of the signature, and nowhere else.
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
from sslrun.config.names import nearest
from sslrun.config.renames import renamed_config
from sslrun.config.types import Node, Supplied

# `_target_` in configs of runs and checkpoints of 0.1.0 -> its name now.
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
    """Return the config of a run or a checkpoint with names of 0.1.0 replaced by current ones."""
    return renamed_config(_with_targets(config)) if isinstance(config, dict) else config


def _with_targets(node: Any) -> Any:
    if isinstance(node, dict):
        target = node.get("_target_")
        new = {"_target_": RENAMED[target]} if isinstance(target, str) and target in RENAMED else {}
        return {k: _with_targets(v) for k, v in node.items()} | new
    return [_with_targets(v) for v in node] if isinstance(node, list) else node


def locate(path: str) -> Callable[..., Any]:
    """Import the function or class of a `_target_`.

    Raises:
        UserError: it cannot be imported, or is not callable.
    """
    module, _, name = path.rpartition(".")
    imported = None
    hint = f"; it is now called {RENAMED[path]}" if path in RENAMED else ""
    try:
        imported = importlib.import_module(module)
        target: Any = getattr(imported, name)
    except Exception as error:  # of any type: the module may be the user's own
        hint = hint or (nearest(name, [n for n in vars(imported) if not n.startswith("_")]) if imported else "")
        raise UserError(f"_target_ {path!r} cannot be imported: {_reason(error, path)}{hint}") from error
    if not callable(target):
        raise UserError(f"_target_ {path!r} is not a function or class{hint}")
    located: Callable[..., Any] = target
    return located


def _reason(error: Exception, path: str) -> str:
    first = path.split(".")[0]
    if isinstance(error, ModuleNotFoundError) and error.name == first:
        return f"{error}; run sslrun in the folder that has {first}.py"
    return str(error) if first == "sslrun" else described(error)


def refuse_foreign(node: Any, source: Path | str) -> None:
    """Raise if a config read from a file has a `_target_` that is neither in our config files nor in the user's folder.

    A checkpoint or run from somebody else could otherwise call any function of any package.

    Args:
        node: the config, or a part of it.
        source: the file or run, for the message.

    Raises:
        UserError: it has such a `_target_`.
    """
    if isinstance(node, dict):
        target = node.get("_target_")
        if target is not None and not (isinstance(target, str) and (target in _our_targets() or _is_here(target))):
            raise UserError(
                f"{source} has the _target_ {target}, which is neither in sslrun nor in a Python file of this folder; "
                f"if it is yours, run sslrun in the folder that has {str(target).split('.')[0]}.py"
            )
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        refuse_foreign(value, source)


@functools.cache
def _our_targets() -> set[str]:
    lines = [line for path in CONF.rglob("*.yaml") for line in path.read_text(encoding="utf-8").splitlines()]
    return {line.split()[1] for line in lines if line.strip().startswith("_target_: ")}


def _is_here(target: str) -> bool:
    """Return whether a target is in a module of the working directory, i.e. the user's own."""
    first = target.split(".")[0]
    return any(p.is_file() for p in (Path(f"{first}.py"), Path(first) / "__init__.py")) and first != "sslrun"


def parameters(target: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Return the keyword-only parameters of a function or class as name -> (annotation, default).

    A key that is a Python keyword has a trailing underscore as a parameter: `in_`.
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
    """Return the target of a node as a partial function with the node's keys.

    Nested nodes are built, those marked `Supplied` as partial functions, too.
    """
    from hydra.utils import instantiate

    marked = {
        key: {**node[key], "_partial_": True}
        for key, (annotation, _) in parameters(locate(node["_target_"])).items()
        if any(isinstance(m, Supplied) for m in typing.get_args(annotation)) and isinstance(node.get(key), dict)
    }
    return instantiate({**node, **marked}, _partial_=True, _convert_="all")


def build(node: Node, *supplied: Any) -> Any:
    """Build the object of a node.

    Args:
        node: has a `_target_`.
        supplied: positional arguments from sslrun.

    Raises:
        UserError: the constructor raised a `ValueError`; the message is kept.
    """
    try:
        return function(node)(*supplied)
    except ValueError as error:
        raise UserError(f"{node['_target_'].rsplit('.', 1)[-1]}: {error}") from error


def settings_of(stage: Callable[..., Any]) -> type:
    """Return the settings class of a command: the type of its function's second parameter."""
    second = list(inspect.signature(stage).parameters)[1]
    settings: type = typing.get_type_hints(stage)[second]
    return settings


def built_settings(settings: type, config: Node) -> Any:
    """Return an instance of a command's settings class with the values of a config."""
    return settings(**{k + "_" * iskeyword(k): v for k, v in config.items()})
