import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.types import RunMode
from omegaconf import OmegaConf

from sslrun.base.errors import UserError
from sslrun.base.output import write_json
from sslrun.base.signals import Stopped
from sslrun.base.version import __version__
from sslrun.config.types import PositiveInt
from sslrun.run import job
from sslrun.run.run import Run, Stages
from tests.helpers import SMALL, STUDY, ended, in_steps, start, summary, wait_for


@pytest.mark.slow
def test_a_closed_pipe_is_no_error(photos: Path) -> None:
    where = ("data", "check", "dataset=folder", f"dataset.root={photos}", *SMALL, "format=json")
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "sslrun", *where], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 141
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


@pytest.mark.slow
def test_a_study_that_is_stopped_says_so_once() -> None:
    process = start(*(a.replace("train.steps=4", "train.steps=100000") for a in STUDY))
    wait_for(process, lambda: in_steps("*/study_runs/*"))
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    assert ended(process) == 128 + signal.SIGTERM
    answer = Path("output").read_text()
    assert answer.count("Stopped by SIGTERM") == 1
    assert "Resume with: sslrun compare resume=" in answer
    logs = [p.read_text() for p in Path("outputs").glob("*/study_runs/*/run.log")]
    assert sum(log.count("Stopped by SIGTERM") for log in logs) == 1


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a command that only tests have."""

    n: PositiveInt
    resume: str | None


class Executed:
    """Executes a job, and keeps the runs that were opened for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch, self.runs = monkeypatch, list[Run]()

    def __call__(
        self, *overrides: str, sweep: bool = True, study: bool = False, error: BaseException | None = None
    ) -> float | None:
        def function(run: Run, settings: Settings) -> dict[str, Any]:
            self.runs.append(run)
            run.note(resumable="checkpoint")
            if error:
                raise error
            return {"val/accuracy": settings.n / 10, "n": settings.n}

        hydra = SimpleNamespace(
            mode=RunMode.MULTIRUN if sweep else RunMode.RUN,
            job=SimpleNamespace(name=job.IN_STUDY if study else "pretrain", num=0, config_name="pretrain"),
            overrides=SimpleNamespace(task=list(overrides)),
            runtime=SimpleNamespace(output_dir=str(Path.cwd() / "runs/0")),
            sweep=SimpleNamespace(dir="runs"),
        )
        self.monkeypatch.setattr(job, "HydraConfig", SimpleNamespace(get=lambda: hydra))
        config = {"n": 3, "resume": None, **{k: int(v) for k, v in (o.lstrip("+").split("=") for o in overrides)}}
        return job.execute(OmegaConf.create(config), Stages(lambda name: function, job.execute))  # type: ignore[arg-type]


@pytest.fixture
def execute(monkeypatch: pytest.MonkeyPatch) -> Executed:
    return Executed(monkeypatch)


PLACE = Path("runs/0")


def test_a_job_returns_its_score_and_is_not_repeated_once_finished(execute: Executed) -> None:
    assert execute("n=4") == 0.4
    (run,) = execute.runs
    assert (run.in_sweep, run.in_study, run.directory) == (True, False, PLACE)
    made = summary(PLACE)
    assert (made["status"], made["n"], made["overrides"], made["stage"]) == ("finished", 4, ["n=4"], "pretrain")
    assert execute("++n=4") == 0.4
    assert execute("n=4", study=True) == 0.4  # its weights are missing
    assert [(r.in_sweep, r.in_study) for r in execute.runs[1:]] == [(True, True)]
    (PLACE / "last.pt").touch()
    assert execute("n=4", study=True) == 0.4
    assert len(execute.runs) == 2
    for sweep, overrides in ((True, "n=5"), (False, "n=4")):  # another job, and a run in the place of another
        with pytest.raises(SystemExit) as error:
            execute(overrides, sweep=sweep)
        assert error.value.code == 1
    assert summary(PLACE)["n"] == 4


def test_a_sweep_goes_on_after_a_failed_job_and_repeats_it(execute: Executed, monkeypatch: pytest.MonkeyPatch) -> None:
    assert execute("n=4", error=UserError("no images")) is None
    assert (summary(PLACE)["status"], summary(PLACE)["error"]) == ("failed", "no images")
    assert execute("n=4", error=ValueError()) is None
    assert summary(PLACE)["error"] == "ValueError"
    assert execute("n=4") == 0.4
    assert "error" not in summary(PLACE)
    assert [r.resumed for r in execute.runs] == [False] * 3
    write_json(PLACE / "summary.json", {**summary(PLACE), "status": "failed", "versions": {"sslrun": "0.0.1"}})
    assert execute("n=4") is None
    assert len(execute.runs) == 3
    monkeypatch.chdir(Path("runs"))
    with pytest.raises(SystemExit) as error:
        execute("n=4", sweep=False, error=UserError("no images"))
    assert error.value.code == 1


@pytest.mark.parametrize("study", [True, False])
def test_a_stopped_run_is_interrupted_and_names_the_command_that_resumes_it(
    study: bool, execute: Executed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(job, "start_logging", lambda: None)
    caplog.set_level("INFO", "sslrun")
    with pytest.raises(SystemExit) as error:
        execute("n=4", study=study, error=Stopped(signal.SIGTERM))
    assert error.value.code == 143
    assert summary(PLACE)["status"] == "interrupted"
    hint = "" if study else " Resume with: sslrun pretrain resume=runs"
    assert [m for m in caplog.messages if "Stopped" in m] == [f"Stopped by SIGTERM.{hint}"]


def test_only_what_can_be_resumed_gets_a_hint() -> None:
    def hint(sweep: bool = False, name: str = "pretrain", resumable: str | None = None, keys: str = "resume") -> str:
        summary = {"resumable": resumable}
        run: Any = SimpleNamespace(
            summary=summary, config={keys: None}, directory=Path("a b"), in_sweep=sweep, stage="pretrain"
        )
        return job._resume_hint(run, SimpleNamespace(job=SimpleNamespace(name=name), sweep=SimpleNamespace(dir="runs")))

    Path("a b").mkdir()
    assert hint() == hint(keys="n", sweep=True, name=job.IN_STUDY) == ""
    assert hint(resumable="study", keys="n") == " Resume with: sslrun pretrain 'resume=a b'"
    assert hint(sweep=True, keys="n") == " Resume with: sslrun pretrain resume=runs"
    Path("a b/last.pt").touch()
    assert hint() == " Resume with: sslrun pretrain 'resume=a b'"
    assert hint(keys="n") == ""


def test_errors_that_a_user_can_correct_are_one_line() -> None:
    assert job.explained(UserError("no images")) == "sslrun: no images"
    assert job.explained(OSError(28, "No space left on device", "a")) == (
        "sslrun: a: No space left on device; earlier files are kept"
    )
    assert "out of GPU memory" in job.explained(torch.OutOfMemoryError())
    assert "out of memory: try" in job.explained(MemoryError())
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert "out of memory: try" in job.explained(caught.value)
    for error in (OSError(5, "Input/output error", "a"), ValueError("x")):
        try:
            raise error
        except Exception as raised:
            assert job.explained(raised).startswith("Traceback")


def test_a_job_with_a_checkpoint_is_resumed_with_what_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[Any, ...]] = []
    monkeypatch.setattr(job, "Run", lambda *given: opened.append(given))
    monkeypatch.setattr(job, "check", lambda *_: [])
    monkeypatch.setattr(job, "settings_of", lambda *_: Settings)
    monkeypatch.setattr(job, "build", lambda device: None)
    changed: list[tuple[Any, ...]] = []

    def resumed_config(directory: Path, stage: str, requested: dict[str, str], composed: Any) -> Any:
        changed.append((directory, stage, requested))
        return OmegaConf.create({"device": {}, "resumed": True})

    monkeypatch.setattr(job, "resumed_config", resumed_config)
    hydra = SimpleNamespace(
        job=SimpleNamespace(config_name="pretrain"), overrides=SimpleNamespace(task=["seed=1", "+train.steps=9", "~x"]),
        runtime=SimpleNamespace(output_dir=str(Path.cwd() / "runs/0")),
    )  # fmt: skip
    before: dict[str, Any] = {"versions": {"sslrun": __version__}, "resumable": "checkpoint"}
    overrides = {"seed": "1", "train.steps": "9"}
    stages: Any = SimpleNamespace(named=lambda name: None)

    def open_with(before: dict[str, Any] | None, resume: str | None = None) -> tuple[Any, ...]:
        job._open(OmegaConf.create({"resume": resume}), hydra, stages, before)
        directory, stage, config, given, *flags = opened[-1]
        assert (stage, given, flags[-1]) == ("pretrain", overrides, stages)
        return directory, "resumed" in config, *flags[:-1]

    absolute = Path.cwd() / PLACE
    assert open_with(None) == (PLACE, False, False, False)
    for resumable in ("checkpoint", "study"):
        assert open_with({**before, "resumable": resumable}) == (PLACE, False, False, True)
    PLACE.mkdir(parents=True)
    (PLACE / "last.pt").touch()
    assert open_with({**before, "resumable": None}) == (PLACE, False, False, True)
    assert not changed
    for resumable in ("checkpoint", "study"):
        assert open_with({**before, "resumable": resumable}) == (absolute, True, True, True)
    assert open_with(None, "other") == (Path("other"), True, True, False)
    here = (absolute, "pretrain", {"train.steps": "9"})
    assert changed == [here, here, (Path("other"), "pretrain", overrides)]


@pytest.mark.slow
def test_a_user_without_a_home_or_name(photos: Path) -> None:
    """As in a container (`docker run --user 12345`): nothing is in the way."""
    unnamed = (
        "import os, pwd\n"
        "def unknown(user): raise KeyError(user)\n"
        "pwd.getpwuid, os.getuid = unknown, lambda: 12345\n"
        "from sslrun.cli.app import main\n"
        "main()"
    )
    arguments = ["data", "preview", "pretext=rotation", "dataset=folder", f"dataset.root={photos}", "images=2"]
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME", "SSLRUN_CACHE")}
    environment |= {"TMPDIR": str(Path.cwd()), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", unnamed, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "atplotlib" not in done.stderr
    assert Path("sslrun-12345/matplotlib").is_dir()
