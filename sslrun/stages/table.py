"""The commands' functions by name, and what Hydra calls to run one. Lower rooms are handed both."""

import importlib

from omegaconf import DictConfig

from sslrun.config.build import settings_of
from sslrun.runs.job import execute
from sslrun.runs.run import Stage, Stages


def stage(name: str) -> Stage:
    """Return the function of a command: `name` in the file of that name, imported when it is needed."""
    function: Stage = getattr(importlib.import_module(f"{__package__}.{name}"), name)
    return function


def settings(name: str) -> type:
    """Return the dataclass of a command's settings."""
    return settings_of(stage(name))


def job(config: DictConfig) -> float | None:
    """Run one job; launchers pickle this function by its name."""
    return execute(config, Stages(stage, job))
