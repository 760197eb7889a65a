"""The functions of the commands by name, and the job that Hydra runs. Both are passed to lower packages."""

import importlib

from omegaconf import DictConfig

from sslrun.config.build import settings_of
from sslrun.run.job import execute
from sslrun.run.run import Stage, Stages
from sslrun.stages.next import next_command


def stage(name: str) -> Stage:
    """Return the function of a command, which has the name of its file; the file is imported when it is needed."""
    function: Stage = getattr(importlib.import_module(f"{__package__}.{name}"), name)
    return function


def settings(name: str) -> type:
    """Return the settings class of a command."""
    return settings_of(stage(name))


def job(config: DictConfig) -> float | None:
    """Run one job; launchers pickle this function by name."""
    return execute(config, Stages(stage, job, next_command))
