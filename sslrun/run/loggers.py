"""All loggers of a run: metrics.jsonl, TensorBoard, MLflow, and Weights & Biases."""

import importlib.util
import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from sslrun.base.console import log
from sslrun.base.files import disk_error
from sslrun.base.machine import is_first
from sslrun.run.background import InBackground, reason_of
from sslrun.run.log import GROUP, PARENT, JsonLines, Logger, TensorBoard, name_of

TENSORBOARD, MLFLOW, WANDB = "tensorboard", "mlflow", "wandb"
LoggerName = Literal["tensorboard", "mlflow", "wandb"]
UNREACHABLE = "unreachable"  # instead of the parent: the runs of a sweep or a study do not wait for the server, too
CLOSE_SECONDS, STOP_SECONDS = 30.0, 5.0  # for which the end of a run waits for servers; after a signal
_of_sweep: list[str] = []  # environment variables that a sweep has set for its jobs


class Loggers:
    """All loggers of a run: JSON lines, and those of `logger=`."""

    def __init__(self, directory: Path, names: Collection[str]) -> None:
        self.directory, self.names, self.tensorboard = directory, names, TensorBoard(directory)
        self._all: list[Logger] = [JsonLines(directory)]
        self._servers: list[InBackground] = []
        self._for_children: list[str] = []  # environment variables
        if TENSORBOARD in names:
            self._all.append(self.tensorboard)

    def connect(self, summary: Mapping[str, Any]) -> dict[str, str]:
        """Open the run at MLflow and Weights & Biases; a server that cannot be reached is left out, with a warning.

        Args:
            summary: of the run, which grows.

        Returns:
            Entries of the summary: their names of this run.
        """
        entries: dict[str, str] = {}
        for name in [n for n in (MLFLOW, WANDB) if n in self.names and is_first()]:
            if name == MLFLOW and os.environ.get(PARENT) == UNREACHABLE:
                continue
            try:
                if name == MLFLOW:
                    from sslrun.run.mlflow import MLflow as Connected
                else:
                    from sslrun.run.wandb import WandB as Connected  # type: ignore[assignment]
                connected = Connected(self.directory, summary)
            except Exception as error:  # of any type: these libraries raise many
                log.warning("%s: %s; the run continues without it", name, reason_of(error))
                self._tell_children({PARENT: UNREACHABLE} if name == MLFLOW else {})
                continue
            log.info("%s: %s", name, connected.place)
            entries |= connected.entries
            self._tell_children(connected.for_children)
            self._servers.append(InBackground(connected, name))
        self._all += self._servers
        return entries

    def _tell_children(self, variables: Mapping[str, str]) -> None:
        for variable, value in variables.items():
            if variable not in os.environ:  # else this run is one of a sweep or a study
                os.environ[variable] = value
                self._for_children.append(variable)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log scalars of a step; nothing if there are none, as where nothing is evaluated.

        Raises:
            UserError: the disk is full.
        """
        if not values:
            return
        try:
            for logger in self._all:
                logger.scalars(step, values)
        except OSError as error:
            raise disk_error(self.directory, error) from None

    def image(self, name: str, png: Path) -> None:
        """Log an image from a file."""
        for logger in self._all:
            logger.image(name, png)

    def sync(self) -> None:
        """Flush everything to the disk."""
        for logger in self._all:
            logger.sync()

    def forget_after(self, step: int) -> None:
        """Drop the entries of later steps."""
        for logger in self._all:
            logger.forget_after(step)

    def close(self, summary: Mapping[str, Any]) -> None:
        """Close all loggers; servers have half a minute for what is left, and seconds after a signal."""
        for variable in self._for_children:
            os.environ.pop(variable, None)
        for logger in self._all:
            logger.close(summary)
        until = time.monotonic() + (STOP_SECONDS if summary["status"] == "interrupted" else CLOSE_SECONDS)
        for server in self._servers:
            server.wait(until - time.monotonic())


def missing_packages(names: Collection[str]) -> list[str]:
    """Return one line for each logger whose package is not installed."""
    return [
        f"logger={name}: needs the package {name}; install it with pip install 'sslrun[{name}]'"
        for name in (MLFLOW, WANDB)
        if name in names and not ((spec := importlib.util.find_spec(name)) and spec.origin)
    ]


def begin_sweep(directory: Path, command: str, names: Collection[str]) -> None:
    """Make the jobs of a sweep children of one run at MLflow, and one group at Weights & Biases."""
    if WANDB in names and GROUP not in os.environ:
        os.environ[GROUP] = name_of(directory, command)
        _of_sweep.append(GROUP)
    if MLFLOW in names:
        from sslrun.run import mlflow

        try:
            os.environ[PARENT] = mlflow.begun_sweep(directory, command)
        except Exception as error:  # of any type
            log.warning("mlflow: %s; the sweep continues without it", reason_of(error))
            os.environ[PARENT] = UNREACHABLE
        _of_sweep.append(PARENT)


def end_sweep(directory: Path, status: str) -> None:
    """End the run of a sweep with `finished`, `failed` or `interrupted`."""
    if PARENT in _of_sweep and os.environ[PARENT] != UNREACHABLE:
        from sslrun.run import mlflow

        try:
            mlflow.end(os.environ[PARENT], directory, status)
        except Exception as error:
            log.warning("mlflow: %s; the run of the sweep stays open", reason_of(error))
    while _of_sweep:
        os.environ.pop(_of_sweep.pop(), None)
