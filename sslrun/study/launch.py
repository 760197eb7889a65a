"""The runs of a study: runs of other commands, each in a folder named by its inputs, so that none is repeated.

    outputs/<stage>/study_runs/<name>-<key>/    a run directory like any other

The key is a hash of the settings, the data, the code that affects results, and the versions of Python and libraries.
"""

import hashlib
import inspect
import json
import platform
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from sslrun.base import signals
from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.base.text import counted, duration, metric
from sslrun.config.build import locate
from sslrun.config.commands import EVALUATE, FINETUNE, PRETRAIN, typed
from sslrun.config.grammar import key_of
from sslrun.config.types import Node
from sslrun.run.background import reason_of
from sslrun.run.find import OUTPUTS, STUDY_RUNS, is_complete, read_summary, score
from sslrun.run.job import IN_STUDY
from sslrun.run.run import Stages

# Code that affects results: parts of the package, and the files of these commands.
ROOMS = ("augment.py", "device.py", "data", "models", "tasks", "evaluation", "training")
LAUNCHED = (PRETRAIN, FINETUNE, EVALUATE)
# Settings that do not affect the weights; the images are identified by their fingerprints, not by their location.
IGNORED_KEYS = ("dataset.root", "unlabeled", "train.save_minutes", "train.keep_every", "logger")
WATCH_SECONDS = 2.0  # between checks for runs that other processes have finished


@dataclass(frozen=True)
class StudyRun:
    """One run of a study.

    Attributes:
        stage: the command.
        name: readable part of the folder's name.
        overrides: of the command.
        key: rest of the folder's name: a hash of all inputs.
    """

    stage: str
    name: str
    overrides: tuple[str, ...]
    key: str

    @property
    def directory(self) -> Path:
        """Return the run directory."""
        return OUTPUTS / self.stage / STUDY_RUNS / f"{self.name}-{self.key}"

    def finished(self) -> bool:
        """Return whether the run is finished, in this study or another; a pretraining also needs its weights.

        Raises:
            UserError: the summary is damaged.
        """
        try:
            return is_complete(self.directory)
        except UserError as error:
            raise UserError(f"{error}; move {self.directory} away to repeat the run") from None


def study_run(stages: Stages, stage: str, name: str, config: Node, overrides: Sequence[str], *data: str) -> StudyRun:
    """Return a run, named by a hash of its inputs.

    Args:
        stages: the commands.
        stage: the command of this run.
        name: readable part of the folder's name.
        config: the composed config, so that the key does not depend on how overrides are written.
        overrides: of the command.
        data: fingerprints of the data and weights that it reads.
    """
    inputs = [stage, _canonical(config), data, code_version(stages), *_user_code(config)]
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:12]
    plain = "".join(c if (c.isascii() and c.isalnum()) or c in "._-" else "_" for c in name)[:60]
    return StudyRun(stage, plain, tuple(overrides), key)


def _canonical(value: Any, prefix: str = "") -> Any:
    """Return a config without ignored keys and with integers as floats, since 1 and 1.0 are the same setting."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if f"{prefix}{k}" not in IGNORED_KEYS}
        return {k: _canonical(v, f"{prefix}{k}.") for k, v in kept.items()}
    if isinstance(value, list):
        return [_canonical(v, f"{prefix}.") for v in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


@cache
def code_version(stages: Stages) -> str:
    """Return a hash of the code that affects results and of the versions of Python and the libraries."""
    libraries = [version(p) for p in ("torch", "torchvision", "numpy", "scikit-learn", "pillow")]
    digest = hashlib.sha256(" ".join([platform.python_version(), *libraries]).encode())
    for path in _code(stages):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _code(stages: Stages) -> Iterator[Path]:
    """Yield the source files that affect results, in a fixed order."""
    package = Path(__file__).parents[1]
    for room in ROOMS:
        yield from sorted((package / room).rglob("*.py")) or [package / room]
    for name in LAUNCHED:
        yield Path(inspect.getfile(stages.named(name)))


def _user_code(node: Any) -> list[str]:
    """Return hashes of the user's own Python files that a config refers to."""
    if isinstance(node, list):
        return [h for value in node for h in _user_code(value)]
    if not isinstance(node, dict):
        return []
    target, inner = node.get("_target_"), [h for value in node.values() for h in _user_code(value)]
    if not isinstance(target, str) or target.startswith("sslrun."):
        return inner
    source = Path(inspect.getfile(locate(target))).read_bytes()
    return [hashlib.sha256(source).hexdigest(), *inner]


def launch_all(runs: Sequence[StudyRun], stages: Stages, title: str = "") -> None:
    """Launch the unfinished runs with Hydra's launcher: sequentially, or in parallel with `hydra/launcher=...`.

    Args:
        title: for lines of progress; the name of the command by default.

    Raises:
        UserError: some runs failed; the others were completed.
        Stopped: the process received a signal.
    """
    todo = [r for r in dict.fromkeys(runs) if not r.finished()]
    if len(todo) < len(runs):
        log.info(
            "Skipping %d of %s: already finished.", len(runs) - len(todo), counted(len(runs), f"{runs[0].stage} run")
        )
    if not todo:
        return
    hydra = launcher(todo[0].stage, stages.job)
    alone = type(hydra).__name__ == "BasicLauncher"
    progress = _Progress(todo, title or todo[0].stage)
    for i, group in enumerate([[p] for p in todo] if alone else [todo]):
        try:
            with nullcontext() if alone else progress.watched():
                hydra.launch([_job(p) for p in group], initial_job_idx=i)
        except SystemExit as end:  # the run has saved its state
            if isinstance(end.code, int) and end.code > 128:
                raise signals.Stopped(end.code - 128) from None
            raise
        except OSError as error:  # creating the folder failed, before the run started
            log.error("%s: %s", error.filename, error.strerror)
        except Exception as error:
            if alone:
                raise
            log.error("%s", reason_of(error))  # of its process, which was killed, for example
        progress.show()
    failed = [p for p in todo if not p.finished()]
    if failed:
        named = "\n".join(f"  {typed(p.stage)} {shlex.join(p.overrides)}" for p in failed[:3])
        raise UserError(
            f"{len(failed)} of {len(todo)} {failed[0].stage} runs of the study failed (see the errors above); "
            f"the same command repeats only these:\n{named}"
        )


class _Progress:
    """Logs each finished run and the estimated time left."""

    def __init__(self, todo: Sequence[StudyRun], title: str) -> None:
        self.title = title
        self.left, self.total, self.began = list(todo), len(todo), time.monotonic()

    def show(self) -> None:
        """Log the runs that have finished since the last call."""
        for p in [p for p in self.left if p.finished()]:
            self.left.remove(p)
            done = self.total - len(self.left)
            left = (time.monotonic() - self.began) / done * len(self.left)
            log.info(
                "%s %d/%d  %s%s", self.title, done, self.total, _description(p), f"  {duration(left)} left" * (left > 0)
            )

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Log runs as other processes finish them."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(WATCH_SECONDS):
                self.show()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def launcher_overrides() -> list[str]:
    """Return the command-line overrides of Hydra's launcher and config search path."""
    kept = ("hydra/launcher", "hydra.launcher", "hydra.searchpath")
    return [o for o in HydraConfig.get().overrides.hydra if key_of(o).startswith(kept)]


def user_config_dir() -> str | None:
    """Return the user's own config folder, given as `-cd DIR`, or None."""
    sources = HydraConfig.get().runtime.config_sources
    return next((str(s.path) for s in sources if s.provider == "command-line"), None)


def _description(p: StudyRun) -> str:
    named = score(read_summary(p.directory))
    return f"{p.name}  {metric(*named)}" if named else p.name


def launcher(stage: str, job: Callable[[DictConfig], Any]) -> Any:
    """Return the launcher selected on the command line, for runs of a command.

    Hydra has no public API for this inside a job, hence its private `Callbacks`.
    """
    from hydra._internal.callbacks import Callbacks
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext, RunMode

    loader = GlobalHydra.instance().config_loader()
    place = [
        f"hydra.sweep.dir={(OUTPUTS / stage / STUDY_RUNS).as_posix()}",
        f"+hydra.job.name={IN_STUDY}",
        "hydra.mode=MULTIRUN",
    ]
    master = loader.load_configuration(stage, [*launcher_overrides(), *place], RunMode.MULTIRUN)
    context = HydraContext(config_loader=loader, callbacks=Callbacks())
    return Plugins.instance().instantiate_launcher(context, job, master)


def _job(p: StudyRun) -> list[str]:
    return [*p.overrides, f"hydra.sweep.subdir={p.directory.name}"]
