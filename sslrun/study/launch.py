"""The runs of a study: of other commands, each in a folder named by what it is made from, so none is done twice.

    outputs/<stage>/study_runs/<name>-<key>/    a run directory like any other

The key is a hash of the settings, the data, the versions of torch and Python, and the code that makes numbers.
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
from sslrun.runs.find import OUTPUTS, STUDY_RUNS, is_complete, read_summary, score
from sslrun.runs.job import IN_STUDY
from sslrun.runs.run import Stages

ROOMS = ("augment.py", "device.py", "data", "models", "tasks", "evaluation", "training")  # that numbers come from
LAUNCHED = (PRETRAIN, FINETUNE, EVALUATE)  # commands, whose own files numbers come from, too
# Settings that no weight depends on; the pictures' fingerprints stand for where they lie.
OF_NO_WEIGHT = ("dataset.root", "unlabeled", "train.save_minutes", "train.keep_every")
WATCH_SECONDS = 2.0  # between two looks at what other processes have finished


@dataclass(frozen=True)
class StudyRun:
    """One run of a study.

    Attributes:
        stage: the command.
        name: of its folder, for people.
        overrides: of the command, of which its settings are made.
        key: of its folder: a hash of all that it is made from.
        setting: of a search, to tell of.
    """

    stage: str
    name: str
    overrides: tuple[str, ...]
    key: str
    setting: str = ""

    @property
    def directory(self) -> Path:
        """Return its run directory."""
        return OUTPUTS / self.stage / STUDY_RUNS / f"{self.name}-{self.key}"

    def finished(self) -> bool:
        """Tell whether it came to its end, in this study or in another; of a pretraining, whether it has its weights.

        Raises:
            UserError: its summary is damaged.
        """
        try:
            return is_complete(self.directory)
        except UserError as error:
            raise UserError(f"{error}; move {self.directory} away to have it made anew") from None


def study_run(
    stages: Stages, stage: str, name: str, config: Node, overrides: Sequence[str], *data: str, setting: str = ""
) -> StudyRun:
    """Name a run by what it is made from.

    Args:
        stages: the commands.
        config: what the overrides come to; a setting is the same however it was said.
        data: fingerprints of what it reads.
        setting: of a search, to tell of.
    """
    made_from = [stage, _canonical(config), data, code_version(stages), *_user_code(config)]
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:12]
    plain = "".join(c if (c.isascii() and c.isalnum()) or c in "._-" else "_" for c in name)[:60]
    return StudyRun(stage, plain, tuple(overrides), key, setting)


def _canonical(value: Any, prefix: str = "") -> Any:
    """Return a config without what no weight depends on, and with 1 as 1.0, which are the same setting."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if f"{prefix}{k}" not in OF_NO_WEIGHT}
        return {k: _canonical(v, f"{prefix}{k}.") for k, v in kept.items()}
    if isinstance(value, list):
        return [_canonical(v, f"{prefix}.") for v in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


@cache
def code_version(stages: Stages) -> str:
    """Return a hash of the code that numbers come from, and of the versions of Python and of the libraries."""
    libraries = [version(p) for p in ("torch", "torchvision", "numpy", "scikit-learn", "pillow")]
    digest = hashlib.sha256(" ".join([platform.python_version(), *libraries]).encode())
    for path in _code(stages):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _code(stages: Stages) -> Iterator[Path]:
    """Yield the files that numbers come from, always in the same order."""
    package = Path(__file__).parents[1]
    for room in ROOMS:
        yield from sorted((package / room).rglob("*.py")) or [package / room]
    for name in LAUNCHED:
        yield Path(inspect.getfile(stages.named(name)))


def _user_code(node: Any) -> list[str]:
    """Return the hashes of the user's own Python files that a config names."""
    if isinstance(node, list):
        return [h for value in node for h in _user_code(value)]
    if not isinstance(node, dict):
        return []
    target, inner = node.get("_target_"), [h for value in node.values() for h in _user_code(value)]
    if not isinstance(target, str) or target.startswith("sslrun."):
        return inner
    source = Path(inspect.getfile(locate(target))).read_bytes()
    return [hashlib.sha256(source).hexdigest(), *inner]


def launch_all(runs: Sequence[StudyRun], stages: Stages) -> None:
    """Do what is not finished, through Hydra's launcher: one after another, or as `hydra/launcher=...` spreads them.

    Raises:
        UserError: some failed; the others were finished all the same.
        Stopped: a signal came.
    """
    todo = [r for r in dict.fromkeys(runs) if not r.finished()]
    if len(todo) < len(runs):
        log.info("%d of %s finished earlier.", len(runs) - len(todo), counted(len(runs), f"{runs[0].stage} run"))
    if not todo:
        return
    hydra = launcher(todo[0].stage, stages.job)
    alone = type(hydra).__name__ == "BasicLauncher"
    progress = _Progress(todo)
    for i, group in enumerate([[p] for p in todo] if alone else [todo]):
        try:
            with nullcontext() if alone else progress.watched():
                hydra.launch([_job(p) for p in group], initial_job_idx=i)
        except SystemExit as end:  # the run has saved itself
            if isinstance(end.code, int) and end.code > 128:
                raise signals.Stopped(end.code - 128) from None
            raise
        except OSError as error:  # of making the folder, before the run begins
            log.error("%s: %s", error.filename, error.strerror)
        progress.show()
    failed = [p for p in todo if not p.finished()]
    if failed:
        named = "\n".join(f"  {typed(p.stage)} {shlex.join(p.overrides)}" for p in failed[:3])
        raise UserError(
            f"{len(failed)} of {len(todo)} {failed[0].stage} runs of the study failed, for the reasons above; "
            f"the same command does these again, and no other:\n{named}"
        )


class _Progress:
    """Tells of every run that has come to its end, and how long the others will take."""

    def __init__(self, todo: Sequence[StudyRun]) -> None:
        self.left, self.all, self.began = list(todo), len(todo), time.monotonic()

    def show(self) -> None:
        """Log the runs that are finished and were not told of."""
        for p in [p for p in self.left if p.finished()]:
            self.left.remove(p)
            done = self.all - len(self.left)
            left = (time.monotonic() - self.began) / done * len(self.left)
            log.info(
                "%s %d/%d  %s%s", p.stage, done, self.all, _description(p), f"  {duration(left)} left" * (left > 0)
            )

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Tell of runs that other processes finish, as they do."""
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


def launching() -> list[str]:
    """Return what was said on the command line of Hydra's launcher, and of where it looks for configs."""
    kept = ("hydra/launcher", "hydra.launcher", "hydra.searchpath")
    return [o for o in HydraConfig.get().overrides.hydra if key_of(o).startswith(kept)]


def _description(p: StudyRun) -> str:
    named, title = score(read_summary(p.directory)), " ".join(filter(None, [p.name, p.setting]))
    return f"{title}  {metric(*named)}" if named else title


def launcher(stage: str, job: Callable[[DictConfig], Any]) -> Any:
    """Return the launcher that the command line asks for, for runs of a command.

    Hydra has no public way to one inside a job; hence its private `Callbacks`.
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
    master = loader.load_configuration(stage, [*launching(), *place], RunMode.MULTIRUN)
    context = HydraContext(config_loader=loader, callbacks=Callbacks())
    return Plugins.instance().instantiate_launcher(context, job, master)


def _job(p: StudyRun) -> list[str]:
    return [*p.overrides, f"hydra.sweep.subdir={p.directory.name}"]
