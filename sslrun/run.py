"""The run directory: what is written where, and finding and reading earlier runs.

    outputs/<stage>/<time>/
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
import json
import logging
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from sslrun import __version__, command
from sslrun.console import log
from sslrun.errors import UserError
from sslrun.files import disk_error, write_text

OUTPUTS = Path("outputs")
PARTS = "parts"  # folder of runs that belong to studies and to mode=auto
# What may differ when a run goes on, besides the device: how long it is, where the data lie, what is kept.
MAY_DIFFER = ("train.epochs", "train.steps", "train.save_minutes", "train.keep_every", "dataset.root", "unlabeled")
TOLD = ("pretext", "init", "mode", "labels", "seeds")  # by which TensorBoard compares runs, besides their configs
STAGES = ("pretrain", "finetune", "evaluate", "predict", "embed", "search", "suggest", "export", "compare")


class Run:
    """One run of one stage, writing into a directory of its own.

    Args:
        directory: made if it is not there.
        stage: the command's name.
        config: composed; its interpolations may still lack what only a checkpoint knows.
        asked: what stands on the command line, as key -> value.
        resumed: go on in a directory that has a run already.
        again: start anew in a directory whose run, a job of a sweep, did not come to a checkpoint.

    Raises:
        UserError: the directory cannot be written, or has a run already.
    """

    def __init__(
        self,
        directory: Path,
        stage: str,
        config: DictConfig,
        asked: dict[str, str],
        resumed: bool = False,
        again: bool = False,
    ) -> None:
        self.directory, self.stage, self.asked, self.resumed = directory, stage, asked, resumed
        self.in_sweep = self.is_part = False  # a study draws for its parts
        self._clock = time.monotonic()
        self._writer: Any = None
        self._purge: int | None = None  # from which step on TensorBoard forgets
        self._summary: dict[str, Any] = {}
        self._before_resume: dict[Path, str] = {}  # files as they were, until the run really goes on
        if resumed:
            self._summary = read_summary(directory)
            self._summary.pop("error", None)
            files = [p for n in ("summary.json", "config.yaml") if (p := directory / n).is_file()]
            self._before_resume = {p: p.read_text(encoding="utf-8") for p in files}
        elif (directory / "summary.json").exists() and not again:
            raise UserError(f"{directory} holds a run already; to go on with it say resume={directory}")
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = locked(directory)
            self._file = logging.FileHandler(directory / "run.log", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise UserError(f"cannot write into {directory}: {error.strerror}") from None
        self._file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(self._file)
        if again and not resumed:
            self.forget_after(-1)
        self._before = self._summary.get("wall_time_seconds", 0.0)
        self._summary |= {
            "stage": stage,
            "status": "running",
            "started": self._summary.get("started") or _now(),
            "command": self._command(resumed),
            "overrides": _as_asked(self._summary if resumed else {}, asked),
            "versions": {p: version(p) for p in ("torch", "torchvision", "numpy", "scikit-learn", "hydra-core")}
            | {"sslrun": __version__, "python": platform.python_version()},
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "git_commit": _git_commit(),
        }
        self._config = config
        self.settle()

    def _command(self, resumed: bool) -> str:
        """Return the command of this run; a study that goes on keeps the one that makes all of it."""
        if resumed and self.stage == "compare":
            return str(self._summary["command"])
        return f"{command(self.stage)} {shlex.join(sys.argv[1:])}".strip()

    def settle(self, **nodes: Any) -> dict[str, Any]:
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
        write_text(self.directory / "summary.json", json.dumps(self._summary, indent=2, ensure_ascii=False) + "\n")

    @property
    def summary(self) -> dict[str, Any]:
        """Return what `summary.json` holds."""
        return self._summary

    def again(self) -> str:
        """Return the command that does the same again, when there are newer runs, too."""
        said, run = str(self._summary["command"]), self._summary["config"].get("run")
        return said if run is None or "run" in self.asked else f"{said} {shlex.quote(f'run={run}')}"

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Append one line to `metrics.jsonl` and the same to TensorBoard."""
        row = {"step": step, **{k: round(float(v), 6) for k, v in values.items()}}
        try:
            with (self.directory / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            for name, value in values.items():
                self.tensorboard.add_scalar(name, value, step)
        except OSError as error:
            raise disk_error(self.directory, error) from None

    def sync(self) -> None:
        """Have what was logged on the disk, before a checkpoint that counts on it."""
        path = self.directory / "metrics.jsonl"
        if path.exists():
            with path.open("a") as file:
                os.fsync(file.fileno())
        if self._writer is not None:
            self._writer.flush()

    def forget_after(self, step: int) -> None:
        """Drop the metrics of steps that a resumed run does again, from TensorBoard's curves too."""
        path = self.directory / "metrics.jsonl"
        if path.exists():
            rows = [r for r in read_metrics(self.directory) if r["step"] <= step]
            write_text(path, "".join(json.dumps(r) + "\n" for r in rows))
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._purge = step + 1

    @property
    def tensorboard(self) -> Any:
        """Return TensorBoard's writer, opened at first use."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.directory), purge_step=self._purge)
        return self._writer

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

    def goes_on(self) -> None:
        """Let a resumed run's new config stand: its checkpoint is read, and it takes steps."""
        self._before_resume = {}

    def figure(self, name: str) -> Path:
        """Return the path of a figure, whose folder exists."""
        path = self.directory / "figures" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        return path

    def close(self, status: str, **entries: Any) -> None:
        """End the run as `finished` or `failed`."""
        try:
            if self._before_resume and status != "finished":  # it never went on: nothing has changed
                for path, text in self._before_resume.items():
                    write_text(path, text)
            else:
                self.note(status=status, **entries)
            if self._writer is not None:
                if status == "finished":
                    self._hparams()
                self._writer.close()
        except OSError as error:
            log.error("The end of the run could not be written: %s", error)
        finally:
            log.removeHandler(self._file)
            self._file.close()
            self._lock.release()

    def _hparams(self) -> None:
        told = {k: self._summary[k] for k in TOLD if k in self._summary}
        all_values = (flattened(told) | flattened(self._summary["config"])).items()
        flat = {k: v for k, v in all_values if isinstance(v, bool | int | float | str)}
        scores = {k: v for k, v in self._summary.items() if "/" in k and isinstance(v, float)}
        self._writer.add_hparams(flat, scores, run_name=".")


def _as_asked(summary: dict[str, Any], asked: dict[str, str]) -> list[str]:
    """Return the overrides of a run, with those that were added when it was resumed."""
    before = dict(o.split("=", 1) for o in summary.get("overrides", []))
    return [f"{k}={v}" for k, v in (before | {k: v for k, v in asked.items() if k != "resume"}).items()]


def locked(directory: Path) -> FileLock:
    """Hold a lock on the directory of a run or a sweep as long as this process lives, however it ends.

    Raises:
        UserError: another process holds it.
    """
    lock = FileLock(directory / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{directory} is being written by another process: wait for it, or stop it") from None
    return lock


def flattened(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested config as one mapping with dotted keys."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        out |= flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="microseconds")


def _git_commit() -> str | None:
    """Return the commit of the project that the command runs in, if there is one."""
    try:
        out = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
        return out.stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None


# -------------------------------------------------------------------------------------------------- earlier runs


def read_summary(directory: Path) -> dict[str, Any]:
    """Read a run's `summary.json`.

    Raises:
        UserError: there is none, or it is not a summary.
    """
    path = directory / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except NotADirectoryError:
        raise UserError(f"{directory} is a file: name the run's folder, {directory.parent}") from None
    except FileNotFoundError:
        jobs = sorted(p.parent.name for p in directory.glob("*/summary.json"))
        if jobs:
            raise UserError(f"{directory} is a sweep of {len(jobs)} runs; name one: {directory / jobs[0]}") from None
        raise UserError(f"{directory}: no run of sslrun there (it has no summary.json)") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    kinds = {"stage": str, "status": str, "config": dict, "overrides": list, "wall_time_seconds": int | float}
    if not isinstance(summary, dict) or not all(isinstance(summary.get(k), kind) for k, kind in kinds.items()):
        raise UserError(f"{path} is not the summary of a run")
    if not all(isinstance(o, str) and "=" in o for o in summary["overrides"]) or not summary["config"]:
        raise UserError(f"{path} is not the summary of a run")
    return summary


def job_order(job: Path) -> tuple[int, str]:
    """Return the key by which the jobs of a sweep are sorted."""
    return (int(job.name) if job.name.isdigit() else 0, job.name)


def read_metrics(directory: Path) -> list[dict[str, float]]:
    """Return the lines of `metrics.jsonl`, without those that are damaged, such as a last one that was cut off.

    Raises:
        UserError: the file cannot be read.
    """
    path, rows = directory / "metrics.jsonl", []
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
            log.warning("Left out a damaged line of %s", path)
    return rows


def differing_keys(now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """Return the keys that differ between two configs of a run that goes on, but for those that may.

    Keys that only one of them has are another version's.
    """
    a, b = flattened(now), flattened(then)
    return [
        k for k in a if k in b and a[k] != b[k] and k not in (*MAY_DIFFER, "resume") and not k.startswith("device.")
    ]


def is_finished(directory: Path) -> bool:
    """Tell whether a directory holds a run that came to its end."""
    return (directory / "summary.json").is_file() and read_summary(directory)["status"] == "finished"


def find(stages: Sequence[str] = STAGES, parts: bool = False) -> list[tuple[Path, dict[str, Any]]]:
    """Return all runs below `outputs/`, oldest first, as (directory, summary); damaged ones are left out.

    Args:
        parts: those that are parts of a study, too.
    """
    found = []
    for stage in stages:
        for path in [*OUTPUTS.glob(f"{stage}/*/summary.json"), *OUTPUTS.glob(f"{stage}/*/*/summary.json")]:
            if path.parent.parent.name == PARTS and not parts:
                continue
            try:
                found.append((path.parent, read_summary(path.parent)))
            except UserError:
                log.warning("Left out %s: it cannot be read.", path)
    return sorted(found, key=lambda f: str(f[1].get("started")))


def score(summary: dict[str, Any]) -> tuple[str, float] | None:
    """Return the name and value of the number that a run is judged by, if it has one."""
    for name in ("test/accuracy", "val/accuracy", "val/knn_accuracy"):
        if isinstance(summary.get(name), int | float):
            return name, float(summary[name])
    return None
