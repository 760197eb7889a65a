"""The run directory.

    outputs/<command>/<time>/
        config.yaml      resolved config
        run.log          log messages
        metrics.jsonl    metrics, one JSON object per line
        events.out.*     metrics for TensorBoard
        last.pt best.pt  checkpoints
        summary.json     final metrics, times, versions, seeds, fingerprints
        figures/         PNG

The jobs of a sweep are in folders 0, 1, 2, ... of one such directory.
"""

import copy
import datetime
import hashlib
import json
import logging
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sslrun.base import processes
from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.base.files import write_text
from sslrun.base.locks import locked
from sslrun.base.output import write_json
from sslrun.base.version import SCHEMA, __version__
from sslrun.config.commands import typed
from sslrun.run import slurm
from sslrun.run.find import OUTPUTS, read_summary
from sslrun.run.loggers import TENSORBOARD, Loggers
from sslrun.run.resume import STUDY, Unchanged

Stage = Callable[..., dict[str, Any]]  # takes a run and the command's settings; the result goes into the summary


@dataclass(frozen=True)
class Stages:
    """All commands, for those that start other runs.

    Attributes:
        named: returns the function of a command.
        job: the function that Hydra calls to run a command.
        following: returns the command to type after a finished one, by its summary and `Run.elsewhere`, or None.
    """

    named: Callable[[str], Stage]
    job: Callable[[DictConfig], float | None]
    following: Callable[[Mapping[str, Any], Path | None], str | None] = lambda _, __: None


class Run:
    """One run of a command and its directory.

    Args:
        directory: created if missing.
        stage: name of the command.
        config: composed config; interpolations of values that only a checkpoint has may be unresolved.
        overrides: overrides of the command line, key -> value.
        resumed: resume the run in this directory.
        restarted: restart a job of a sweep that stopped before its first checkpoint.
        stages: all commands, for a run that starts others.

    Attributes:
        log: loggers of metrics and images.
        in_sweep: whether this is a job of a sweep.
        in_study: whether this is a run of a study; the study draws the figures.

    Raises:
        UserError: the directory is not writable, or contains a run already.
    """

    def __init__(
        self,
        directory: Path,
        stage: str,
        config: DictConfig,
        overrides: dict[str, str],
        resumed: bool = False,
        restarted: bool = False,
        stages: Stages | None = None,
    ) -> None:
        self.directory, self.stage, self.overrides, self.resumed = directory, stage, overrides, resumed
        self._stages, self._config = stages, config
        self.in_sweep = self.in_study = False
        self.log = Loggers(directory, config.get("logger", [TENSORBOARD]))
        self._clock = time.monotonic()
        self._summary: dict[str, Any] = {}
        self._unchanged = Unchanged(directory) if resumed else None  # to restore if resuming fails
        if resumed:
            self._summary = read_summary(directory)
            self._summary.pop("error", None)
        elif (directory / "summary.json").exists() and not restarted:
            raise UserError(f"{directory} contains a run already; use resume={directory} to resume it")
        self._open()
        if restarted and not resumed:
            self.log.forget_after(-1)
        self._before = self._summary.get("wall_time_seconds", 0.0)
        self._summary |= self._first_entries()
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

    def _first_entries(self) -> dict[str, Any]:
        """Return the entries of the summary that are known at the beginning."""
        of_study = self._summary.get("resumable") == STUDY  # keep the command of the whole study
        return {
            "schema": SCHEMA,
            "stage": self.stage,
            "status": "running",
            "started": self._summary.get("started") or _now(),
            "command": self._summary["command"] if of_study else _command_line(self.stage),
            "overrides": _with_later(self._summary.get("overrides", []), self.overrides),
            "versions": {p: version(p) for p in ("torch", "torchvision", "numpy", "scikit-learn", "hydra-core")}
            | {"sslrun": __version__, "python": platform.python_version()},
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "git_commit": _git_commit(),
            "processes": processes.count(),
            **({slurm.JOB: job} if (job := slurm.job()) else {}),
        }

    def connect(self) -> None:
        """Open the run at the servers of its loggers; this is not time of the run."""
        began = time.monotonic()
        entries = self.log.connect(self._summary)
        self._clock += time.monotonic() - began
        self.note(**entries)

    def resolve(self, **nodes: Any) -> dict[str, Any]:
        """Set nodes of the config, resolve it, and write it to `config.yaml` and the summary.

        Args:
            nodes: nodes that depend on a checkpoint.

        Returns:
            The resolved config as a plain dict.
        """
        OmegaConf.set_struct(self._config, False)
        for name, node in nodes.items():
            self._config[name] = node
        resolved: dict[str, Any] = OmegaConf.to_container(self._config, resolve=True)  # type: ignore[assignment]
        self._summary["config"] = resolved
        write_text(self.directory / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(resolved)))
        self.note()
        return resolved

    def with_nodes(self, **nodes: Any) -> dict[str, Any]:
        """Return the resolved config with other nodes; the run's own stays as it is."""
        config = copy.deepcopy(self._config)
        OmegaConf.set_struct(config, False)
        for name, node in nodes.items():
            config[name] = node
        resolved: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
        return resolved

    def note(self, **entries: Any) -> None:
        """Add entries to the summary and write `summary.json`."""
        self._summary |= entries
        self._summary["wall_time_seconds"] = round(self._before + time.monotonic() - self._clock, 2)
        write_json(self.directory / "summary.json", self._summary)

    @property
    def summary(self) -> dict[str, Any]:
        """Return the content of `summary.json`."""
        return self._summary

    @property
    def config(self) -> dict[str, Any]:
        """Return the resolved config as a plain dict."""
        config: dict[str, Any] = self._summary["config"]
        return config

    def settings_digest(self) -> str:
        """Return a hash of the resolved config, without the directory of a resumed run."""
        return hashlib.sha256(json.dumps(self.config | {"resume": None}).encode()).hexdigest()[:16]

    @property
    def command(self) -> str:
        """Return the command that repeats this run; a default `run=latest` is replaced by the run that was used."""
        command, run = str(self._summary["command"]), self.config.get("run")
        return command if run is None or "run" in self.overrides else f"{command} {shlex.quote(f'run={run}')}"

    @property
    def elsewhere(self) -> Path | None:
        """Return the directory if it is outside `outputs/`, so that `latest` does not find the run."""
        return None if self.directory.resolve().is_relative_to(OUTPUTS.resolve()) else self.directory

    @property
    def stages(self) -> Stages:
        """Return all commands."""
        assert self._stages is not None, "a run that starts others needs `stages`"
        return self._stages

    def refuse_other_data(self, fingerprint: str, images: int) -> None:
        """Check that a resumed run has the same data as before, and that all processes have the same.

        Args:
            fingerprint: of the data.
            images: number of images, for the message.

        Raises:
            UserError: images, labels or classes have changed, or differ between processes.
        """
        processes.refuse_differences(data=fingerprint)
        was = self._summary.get("data_fingerprint")
        if self.resumed and was not in (None, fingerprint):
            raise UserError(
                f"{self.directory} was started with other images, labels or classes than those found now "
                f"(images: {images}): restore the original data, or start a new run"
            )

    def keep_changes(self) -> None:
        """Keep the new config of a resumed run, now that its checkpoint has been loaded."""
        self._unchanged = None

    def figure(self, name: str) -> Path:
        """Return the path of a figure; its folder is created."""
        path = self.directory / "figures" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        return path

    def close(self, status: str, **entries: Any) -> None:
        """End the run with status `finished`, `failed` or `interrupted`, and release its directory."""
        try:
            if self._unchanged is not None and status != "finished":
                self._unchanged.restore()
                status = read_summary(self.directory)["status"]
            else:
                self.note(status=status, **entries)
            self.log.close({**self._summary, "status": status})
        except OSError as error:
            log.error("Cannot write the final summary: %s", error)
        finally:
            log.removeHandler(self._file)
            self._file.close()
            self._lock.release()


def _command_line(stage: str) -> str:
    return f"{typed(stage)} {shlex.join(sys.argv[1:])}".strip()


def _with_later(overrides: list[str], later: dict[str, str]) -> list[str]:
    """Return the overrides of a run, updated by those given when it was resumed."""
    before = dict(o.split("=", 1) for o in overrides)
    return [f"{k}={v}" for k, v in (before | {k: v for k, v in later.items() if k != "resume"}).items()]


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="microseconds")


def _git_commit() -> str | None:
    """Return the git commit of the working directory, if there is one."""
    try:
        out = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
        return out.stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None
