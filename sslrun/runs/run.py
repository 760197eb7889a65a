"""The run directory: what is written where.

    outputs/<command>/<time>/
        config.yaml      the config with everything resolved
        run.log          what was said on screen
        metrics.jsonl    one JSON object a line
        events.out.*     the same for TensorBoard
        last.pt best.pt  checkpoints
        summary.json     final numbers, times, versions, seeds, fingerprints
        figures/         PNG

A sweep has its jobs in folders 0, 1, 2, ... of one such directory.
"""

import datetime
import logging
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.base.files import write_text
from sslrun.base.locks import locked
from sslrun.base.output import write_json
from sslrun.base.version import __version__
from sslrun.config.commands import typed
from sslrun.runs.find import read_summary
from sslrun.runs.log import Loggers
from sslrun.runs.resume import STUDY, Unchanged

Stage = Callable[..., dict[str, Any]]  # of a run and the command's settings; what it returns goes into the summary


@dataclass(frozen=True)
class Stages:
    """The commands, handed down to those that start runs of their own.

    Attributes:
        named: returns a command's function.
        job: what Hydra calls to run one.
    """

    named: Callable[[str], Stage]
    job: Callable[[DictConfig], float | None]


class Run:
    """One run of one command, writing into a directory of its own.

    Args:
        directory: made if it is not there.
        stage: the command's name.
        config: composed; its interpolations may still lack what only a checkpoint knows.
        overrides: what stands on the command line, as key -> value.
        resumed: go on in a directory that has a run already.
        anew: start anew in a directory whose run, a job of a sweep, did not come to a checkpoint.
        stages: the commands, for a run that starts others.

    Attributes:
        log: of numbers and images.
        in_sweep, in_study: whether it is a job of a sweep, or one of the runs of a study, which draws for them.

    Raises:
        UserError: the directory cannot be written, or has a run already.
    """

    def __init__(
        self,
        directory: Path,
        stage: str,
        config: DictConfig,
        overrides: dict[str, str],
        resumed: bool = False,
        anew: bool = False,
        stages: Stages | None = None,
    ) -> None:
        self.directory, self.stage, self.overrides, self.resumed = directory, stage, overrides, resumed
        self._stages, self._config = stages, config
        self.in_sweep = self.in_study = False
        self.log = Loggers(directory)
        self._clock = time.monotonic()
        self._summary: dict[str, Any] = {}
        self._unchanged = Unchanged(directory) if resumed else None  # until the run really goes on
        if resumed:
            self._summary = read_summary(directory)
            self._summary.pop("error", None)
        elif (directory / "summary.json").exists() and not anew:
            raise UserError(f"{directory} holds a run already; to go on with it say resume={directory}")
        self._open()
        if anew and not resumed:
            self.log.forget_after(-1)
        self._before = self._summary.get("wall_time_seconds", 0.0)
        self._summary |= self._begun()
        self.resolve()

    def _open(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = locked(self.directory)
            self._file = logging.FileHandler(self.directory / "run.log", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise UserError(f"cannot write into {self.directory}: {error.strerror}") from None
        self._file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(self._file)

    def _begun(self) -> dict[str, Any]:
        """Return what the summary says from the beginning on."""
        of_study = self._summary.get("resumable") == STUDY  # which keeps the command that makes all of it
        return {
            "stage": self.stage,
            "status": "running",
            "started": self._summary.get("started") or _now(),
            "command": self._summary["command"] if of_study else _command_line(self.stage),
            "overrides": _with_later(self._summary.get("overrides", []), self.overrides),
            "versions": {p: version(p) for p in ("torch", "torchvision", "numpy", "scikit-learn", "hydra-core")}
            | {"sslrun": __version__, "python": platform.python_version()},
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "git_commit": _git_commit(),
        }

    def resolve(self, **nodes: Any) -> dict[str, Any]:
        """Put what a checkpoint decided into the config, resolve it and keep it.

        Returns:
            The whole config, plain.
        """
        OmegaConf.set_struct(self._config, False)
        for name, node in nodes.items():
            self._config[name] = node
        resolved: dict[str, Any] = OmegaConf.to_container(self._config, resolve=True)  # type: ignore[assignment]
        self._summary["config"] = resolved
        write_text(self.directory / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(resolved)))
        self.note()
        return resolved

    def note(self, **entries: Any) -> None:
        """Put entries into `summary.json`, now."""
        self._summary |= entries
        self._summary["wall_time_seconds"] = round(self._before + time.monotonic() - self._clock, 2)
        write_json(self.directory / "summary.json", self._summary)

    @property
    def summary(self) -> dict[str, Any]:
        """Return what `summary.json` holds."""
        return self._summary

    @property
    def config(self) -> dict[str, Any]:
        """Return the whole config, plain, as it was resolved last."""
        config: dict[str, Any] = self._summary["config"]
        return config

    @property
    def command(self) -> str:
        """Return the command that does the same again, when there are newer runs, too."""
        command, run = str(self._summary["command"]), self.config.get("run")
        return command if run is None or "run" in self.overrides else f"{command} {shlex.quote(f'run={run}')}"

    @property
    def stages(self) -> Stages:
        """Return the commands."""
        assert self._stages is not None, "a run that starts others needs the commands"
        return self._stages

    def refuse_other_data(self, fingerprint: str, images: int) -> None:
        """Let a resumed run go on with the pictures alone that it was started with.

        Raises:
            UserError: they are others, or have other labels.
        """
        was = self._summary.get("data_fingerprint")
        if self.resumed and was not in (None, fingerprint):
            raise UserError(
                f"{self.directory} was started with other pictures, labels or classes than the {images} pictures that "
                "are there now: bring those back, or start a new run"
            )

    def keep_changes(self) -> None:
        """Let a resumed run's new config stand: its checkpoint is read, and it takes steps."""
        self._unchanged = None

    def figure(self, name: str) -> Path:
        """Return the path of a figure, whose folder exists."""
        path = self.directory / "figures" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        return path

    def close(self, status: str, **entries: Any) -> None:
        """End the run as `finished`, `failed` or `interrupted`."""
        try:
            if self._unchanged is not None and status != "finished":
                self._unchanged.restore()
            else:
                self.note(status=status, **entries)
            self.log.close(self._summary if status == "finished" else None)
        except OSError as error:
            log.error("The end of the run could not be written: %s", error)
        finally:
            log.removeHandler(self._file)
            self._file.close()
            self._lock.release()


def _command_line(stage: str) -> str:
    return f"{typed(stage)} {shlex.join(sys.argv[1:])}".strip()


def _with_later(overrides: list[str], later: dict[str, str]) -> list[str]:
    """Return the overrides of a run, with those that were added when it was resumed."""
    before = dict(o.split("=", 1) for o in overrides)
    return [f"{k}={v}" for k, v in (before | {k: v for k, v in later.items() if k != "resume"}).items()]


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="microseconds")


def _git_commit() -> str | None:
    """Return the commit of the project that the command runs in, if there is one."""
    try:
        out = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
        return out.stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None
