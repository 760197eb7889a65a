"""Loggers of metrics and images in files: JSON lines and TensorBoard."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.base.files import write_text
from sslrun.config.nodes import flattened
from sslrun.run.find import OUTPUTS

METRICS = "metrics.jsonl"
HPARAMS = ("pretext", "init", "mode", "labels_total", "seeds")  # for TensorBoard, in addition to the config
# Environment variables that make the runs of this process, and of those that it starts, children of another.
PARENT, GROUP = "SSLRUN_MLFLOW_PARENT", "WANDB_RUN_GROUP"


class Logger(Protocol):
    """Interface of a logger."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log scalars of a step."""

    def image(self, name: str, png: Path) -> None:
        """Log an image from a file."""

    def sync(self) -> None:
        """Flush everything to the disk."""

    def forget_after(self, step: int) -> None:
        """Drop the entries of later steps, which a resumed run repeats."""

    def close(self, summary: Mapping[str, Any]) -> None:
        """Close the logger at the end of a run with this summary, whose `status` says how it ended."""


class JsonLines:
    """Scalars in `metrics.jsonl`, one JSON object per step."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.path = directory, directory / METRICS

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line."""
        row = {"step": step, **{k: round(float(v), 6) for k, v in values.items()}}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def image(self, name: str, png: Path) -> None:
        """Do nothing: images are not logged here."""

    def sync(self) -> None:
        """Flush the file to the disk, before a checkpoint that relies on it."""
        if self.path.exists():
            with self.path.open("a") as file:
                os.fsync(file.fileno())

    def forget_after(self, step: int) -> None:
        """Drop the lines of later steps."""
        if self.path.exists():
            rows = [r for r in read_metrics(self.directory) if r["step"] <= step]
            write_text(self.path, "".join(json.dumps(r) + "\n" for r in rows))

    def close(self, summary: Mapping[str, Any]) -> None:
        """Do nothing: the file is closed after every line."""


class TensorBoard:
    """Curves, images and hyperparameters for TensorBoard. The writer is created at the first use."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._opened: Any = None
        self._purge: int | None = None  # earlier curves are dropped from this step on

    @property
    def writer(self) -> Any:
        """Return the `SummaryWriter`."""
        if self._opened is None:
            from torch.utils.tensorboard import SummaryWriter

            self._opened = SummaryWriter(str(self.directory), purge_step=self._purge)
        return self._opened

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def image(self, name: str, png: Path) -> None:
        """Add an image."""
        import numpy as np
        from PIL import Image

        with Image.open(png) as opened:
            self.writer.add_image(name, np.asarray(opened.convert("RGB")), dataformats="HWC")

    def sync(self) -> None:
        """Flush the buffer."""
        if self._opened is not None:
            self._opened.flush()

    def forget_after(self, step: int) -> None:
        """Drop the points of later steps from the curves."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None
        self._purge = step + 1

    def close(self, summary: Mapping[str, Any]) -> None:
        """Add the hyperparameters and metrics of a finished run, and close the writer, if it is open."""
        if self._opened is None:
            return
        if summary["status"] == "finished":
            hparams = {k: summary[k] for k in HPARAMS if k in summary}
            settings = (flattened(hparams) | flattened(summary["config"])).items()
            flat = {k: v for k, v in settings if isinstance(v, bool | int | float | str)}
            self._opened.add_hparams(flat, scores_of(summary), run_name=".")
        self._opened.close()


def scores_of(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics in a run's summary."""
    return {k: v for k, v in summary.items() if "/" in k and isinstance(v, float)}


def name_of(directory: Path, command: str) -> str:
    """Return the name of a run or a sweep on a server: its directory without outputs/."""
    return str(directory.relative_to(OUTPUTS)) if directory.is_relative_to(OUTPUTS) else f"{command} {directory.name}"


def read_metrics(directory: Path) -> list[dict[str, float]]:
    """Read the rows of `metrics.jsonl`; damaged lines, such as a truncated last one, are skipped with a warning.

    Raises:
        UserError: the file cannot be read.
    """
    path, rows = directory / METRICS, []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
        else:
            log.warning("Skipped a damaged line of %s", path)
    return rows
