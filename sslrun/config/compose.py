"""The config files, and composing them with Hydra."""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from sslrun.base.errors import UserError
from sslrun.base.paths import CONF
from sslrun.config.grammar import key_of
from sslrun.config.hydra_keys import CHDIR
from sslrun.config.renames import renamed_composed
from sslrun.config.types import Node


def folders(config_dir: str | None = None) -> list[Path]:
    """Return the folders of config files in Hydra's order: ours, then the user's own if there is one."""
    return [CONF, *([Path(config_dir)] if config_dir else [])]


def choices(group: str, config_dir: str | None = None) -> list[str]:
    """Return the choices of a config group, which are the names of its files."""
    names = {p.stem for d in folders(config_dir) for p in (d / group).glob("*.yaml")}
    return sorted(n for n in names if not n.startswith("_"))


def groups(config_dir: str | None = None) -> list[str]:
    """Return the names of the config groups."""
    return sorted({p.name for d in folders(config_dir) for p in d.iterdir() if p.is_dir() and p.name != "hydra"})


def group_choices(overrides: Iterable[str], config_dir: str | None) -> list[str]:
    """Return the overrides that choose from a config group, such as `optimizer=sgd`."""
    names = groups(config_dir)
    return [o for o in overrides if key_of(o) in names]


def compose_config(stage: str, overrides: list[str], config_dir: str | None) -> DictConfig:
    """Compose the config of a command with Hydra.

    Args:
        stage: the command.
        overrides: as on the command line.
        config_dir: the user's own config folder.

    Raises:
        UserError: a YAML file sets `hydra.job.chdir`.
        HydraException: it cannot be composed.
    """
    config = _composed(stage, overrides, config_dir)
    if config.hydra.job.chdir:  # set in a YAML file of the user
        raise UserError(f"hydra.job.chdir=true: {CHDIR}; remove it")
    with open_dict(config):
        del config["hydra"]
    return renamed_composed(config, overrides)


def chosen(stage: str, group: str, overrides: list[str], config_dir: str | None) -> str:
    """Return the choice of a config group; see `compose_config` for the rest."""
    choice: str = _composed(stage, overrides, config_dir).hydra.runtime.choices[group]
    return choice


def _composed(stage: str, overrides: list[str], config_dir: str | None) -> DictConfig:
    """Return a composed config with Hydra's own node."""
    if config_dir:
        overrides = [*overrides, f"hydra.searchpath=['file://{Path(config_dir).resolve()}']"]
    inside = GlobalHydra.instance().is_initialized()
    try:
        with nullcontext() if inside else initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
            return compose(config_name=stage, overrides=overrides, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException):
        raise
    except (AssertionError, AttributeError, TypeError, ValueError) as error:  # Hydra does not check all overrides
        raise HydraException(f"the config cannot be composed: {error}") from error


def compose_nodes(stage: str, *names: str) -> list[Node]:
    """Return nodes of a command's default config by name."""
    config: dict[str, Any] = OmegaConf.to_container(compose_config(stage, [], None), resolve=True)  # type: ignore[assignment]
    return [config[n] for n in names]


def given_keys(stage: str, config: Node, dataset: str, overrides: Mapping[str, str], config_dir: str | None) -> Node:
    """Return the overrides, with `backbone` and `dataset.image_size` also where an experiment sets them.

    Args:
        stage: the command.
        config: the composed config.
        dataset: the option of the config group, whose own image size is a default.
        overrides: of the command line, key -> value.
        config_dir: the user's own config folder.
    """
    default = compose_config(stage, [f"dataset={dataset}"], config_dir)
    size = config["dataset"]["image_size"]
    found: Node = {}
    if OmegaConf.to_container(default.backbone) != config["backbone"]:
        found["backbone"] = str(config["backbone"].get("_target_"))
    if size is not None and size != default.dataset.image_size:
        found["dataset.image_size"] = str(size)
    return {**found, **overrides}


def choice_node(group: str, choice: str) -> Node:
    """Return the node of a choice in one of our config groups."""
    node: Any = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{choice}.yaml"), resolve=True)
    return node
