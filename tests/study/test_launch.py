"""Runs of a study: named by a hash of their inputs, never repeated."""

import importlib.util
import json
import re
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from PIL import Image

from sslrun.base import console, signals
from sslrun.base.errors import UserError
from sslrun.base.output import write_json
from sslrun.base.paths import CONF
from sslrun.run.run import Stage, Stages
from sslrun.stages.table import job
from sslrun.stages.table import stage as named_stage
from sslrun.study import launch
from tests.helpers import (
    QUICK,
    REPOSITORY,
    SMALL_STUDY,
    STUDY,
    STUDY_RUNS,
    STUDY_STEPS,
    Cli,
    ended,
    run_forked,
    runs,
    start,
    study_runs,
    study_table,
    summary,
    wait_for,
)


@pytest.mark.slow
def test_finished_runs_are_not_repeated(in_study: Path, cli: Cli) -> None:
    before = {s: study_runs(s) for s in ("pretrain", "finetune", "evaluate")}
    answer = cli(*STUDY)
    assert answer.code == 0, answer.err
    assert {s: study_runs(s) for s in before} == before
    assert "All runs of this study are finished." in answer.err
    assert [r["test_accuracy"] for r in study_table(runs("compare")[1])] == [
        r["test_accuracy"] for r in study_table(in_study)
    ]
    more = cli(*STUDY[:-1], "seeds=3")  # another label subset: only its runs
    assert more.code == 0, more.err
    assert len(study_runs("pretrain")) == 2
    assert len(study_runs("finetune")) == STUDY_RUNS * 3 // 2
    assert all(study_runs(s)[k] == v for s, old in before.items() for k, v in old.items())
    other = cli(*STUDY, "finetune.label_smoothing=0.2")  # another setting: all classifiers, no pretraining
    assert other.code == 0, other.err
    assert len(study_runs("pretrain")) == 2
    assert len(study_runs("finetune")) == STUDY_RUNS * 3 // 2 + STUDY_RUNS


@pytest.mark.slow
def test_joblib_runs_in_parallel_with_the_same_results(in_study: Path, cli: Cli) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    there = study_table(in_study)
    shutil.rmtree("outputs")
    answer = cli(*STUDY, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert answer.code == 0, answer.err
    result = study_table(runs("compare")[0])
    assert [r["test_accuracy"] for r in result] == [r["test_accuracy"] for r in there]
    assert len(study_runs("evaluate")) == STUDY_RUNS
    messages = re.findall(
        rf"finetune (\d+)/{STUDY_RUNS} .*?(left)?$", answer.err, re.M
    )  # logged while the others were running
    assert messages == [(str(i + 1), "left" * (i + 1 < STUDY_RUNS)) for i in range(STUDY_RUNS)]


@pytest.mark.slow
def test_submitit_runs_a_study_with_the_same_results() -> None:
    pytest.importorskip("submitit")
    study = ("compare", *SMALL_STUDY, "inits=[rotation]", "labels_per_class=[3]", "seeds=1")
    tables = []
    for launcher in ((), ("hydra/launcher=submitit_local",)):
        run_forked(*study, *launcher)
        tables.append([r["test_accuracy"] for r in study_table(runs("compare")[0])])
        shutil.rmtree("outputs")
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_an_interrupted_study_can_be_resumed(studied: Path) -> None:
    process = start(*STUDY)
    wait_for(process, lambda: len(list(Path("outputs/finetune/study_runs").glob("*/best.pt"))) > 3)
    process.terminate()
    assert ended(process) == 128 + signal.SIGTERM
    answer = Path("output").read_text()
    command = re.search(r"Resume with: sslrun compare (resume=\S+)", answer)
    assert command is not None, answer
    assert answer.count("Resume with") == 1
    (study,) = runs("compare")
    assert summary(study)["status"] == "interrupted"
    done = {
        k: v
        for k, v in study_runs("finetune").items()
        if summary(Path("outputs/finetune/study_runs", k))["status"] == "finished"
    }
    assert 3 <= len(done) < STUDY_RUNS
    process = start("compare", command[1])
    assert ended(process) == 0, Path("output").read_text()
    assert {k: v for k, v in study_runs("finetune").items() if k in done} == done
    there = next((studied / "outputs/compare").iterdir())
    assert [r["test_accuracy"] for r in study_table(study)] == [r["test_accuracy"] for r in study_table(there)]


@pytest.mark.slow
def test_failed_runs_are_listed_and_only_they_are_repeated(
    in_study: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    smaller = ("compare", *SMALL_STUDY, "inits=[rotation]", "labels_per_class=[3]", "seeds=1")  # runs of the other
    (victim,) = Path("outputs/finetune/study_runs").glob("scratch_finetune_*_subset0*")
    shutil.rmtree(victim)
    victim.write_text("in the way")
    answer = cli(*smaller)
    assert answer.code == 1
    assert "File exists" in answer.err
    assert "1 of 1 finetune runs of the study failed" in answer.err
    assert "Traceback" not in answer.err
    victim.unlink()
    monkeypatch.setattr(console, "QUIET_EVERY", 0.0)
    again = cli(*smaller)
    assert again.code == 0
    # runs of a study log their progress, too
    assert re.search(r"^finetune step \d+/\d+, [\d,]+ images/s", again.err, re.M)


@pytest.mark.slow
def test_runs_do_not_depend_on_the_location_of_images_and_on_save_minutes(cli: Cli, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(48):
        place = Path("photos", ("train", "test")[i % 4 == 0], "ab"[i % 2])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(place / f"{i}.png")
    overrides = ("dataset=folder", "dataset.image_size=16", "equal_time=false", "inits=[rotation]",
                 "seeds=1", "labels_per_class=[3]", "mode=probe", "backbone.widths=[8,16]", *STUDY_STEPS,
                 *QUICK)  # fmt: skip
    assert cli("compare", *overrides, "dataset.root=photos").code == 0
    before = {s: study_runs(s) for s in ("pretrain", "finetune", "evaluate")}
    Path("photos").rename("moved")
    answer = cli("compare", *overrides, "dataset.root=moved", "train.save_minutes=1")
    assert answer.code == 0, answer.err
    assert {s: study_runs(s) for s in before} == before
    for stage in ("finetune", "evaluate"):  # repeated runs read the images from their current location
        shutil.rmtree(next(Path("outputs", stage, "study_runs").glob("rotation*")))
    answer = cli("compare", *overrides, "dataset.root=moved")
    assert answer.code == 0, answer.err
    assert {s: set(study_runs(s)) for s in before} == {s: set(b) for s, b in before.items()}


@pytest.mark.slow
def test_a_study_with_a_custom_task_resumes_without_its_config_dir(cli: Cli) -> None:
    Path("mine/pretext").mkdir(parents=True)
    ours = (REPOSITORY / "conf/pretext/rotation.yaml").read_text()
    Path("mine/pretext/turned.yaml").write_text(ours.replace("copies: 4", "copies: 1"))
    overrides = (*SMALL_STUDY, "inits=[turned]", "labels_per_class=[3]", "seeds=1", "mode=probe")
    assert cli("compare", "-cd", "mine", *overrides, "hydra.launcher._target_=no.such").code == 1
    shutil.rmtree("outputs")
    assert cli("compare", "-cd", "mine", *overrides).code == 0
    (study,) = runs("compare")
    result = json.loads((study / "summary.json").read_text())
    (study / "summary.json").write_text(json.dumps(result | {"status": "interrupted"}))
    answer = cli("compare", f"resume={study}")
    assert answer.code == 0, answer.err
    assert "turned, linear probe" in answer.err
    Path("mine").rename("ours")
    answer = cli("compare", f"resume={study}")
    assert answer.code == 1
    assert "which does not exist; give its new path with -cd" in answer.err


def copy_of_the_package(folder: Path) -> Stages:
    """Copy the package into a folder, and return the commands of the copy."""
    shutil.copytree(REPOSITORY / "sslrun", folder, ignore=shutil.ignore_patterns("__pycache__", "conf"))

    def named(name: str) -> Stage:
        spec = importlib.util.spec_from_file_location(name, folder / "stages" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, name, module)
            spec.loader.exec_module(module)
        function: Stage = getattr(module, name)
        return function

    return Stages(named, job)


@pytest.mark.parametrize(
    ("changed", "matters"),
    [
        ("augment.py", True),
        ("device.py", True),
        ("data/labels.py", True),
        ("data/sources/digits.py", True),
        ("models/backbones/stem.py", True),
        ("tasks/pretext/rotation.py", True),
        ("evaluation/probe.py", True),
        ("training/loop.py", True),
        ("stages/pretrain.py", True),
        ("stages/finetune.py", True),
        ("stages/evaluate.py", True),
        ("stages/compare.py", False),
        ("report/study.py", False),
        ("study/plan.py", False),
        ("cli/app.py", False),
        ("base/console.py", False),
    ],
)
def test_keys_change_with_code_that_affects_results(
    changed: str, matters: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key() -> str:
        launch.code_version.cache_clear()
        return launch.study_run(stages, "pretrain", "simclr", {"seed": 0}, ["seed=0"], "images").key

    stages = copy_of_the_package(tmp_path / "sslrun")
    monkeypatch.setattr(launch, "__file__", str(tmp_path / "sslrun/study/launch.py"))
    before = key()
    assert key() == before
    with (tmp_path / "sslrun" / changed).open("a") as file:
        file.write("# one more line\n")
    assert (key() != before) == matters


def test_a_run_of_a_study_is_repeated_if_images_settings_or_stage_change_and_not_for_other_overrides() -> None:
    stages = Stages(named_stage, job)

    def key(command: str = "finetune", seed: float = 0, overrides: str = "seed=0", data: str = "images") -> str:
        return launch.study_run(stages, command, "simclr", {"seed": seed}, [overrides], data, "validation").key

    assert key() == key(seed=0.0) == key(overrides="++seed=0")
    assert len({key(), key(data="other images"), key(seed=1), key("pretrain")}) == 4


def test_the_private_api_of_hydra_launches_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """`hydra._internal.callbacks.Callbacks` exists, and a launcher that is built with it runs a job."""
    from hydra._internal.callbacks import Callbacks

    assert Callbacks() is not None
    seen: list[tuple[Any, ...]] = []

    def record(config: DictConfig) -> float:
        hydra = HydraConfig.get()
        seen.append((config.train.steps, hydra.job.name, hydra.mode, Path(hydra.runtime.output_dir)))
        return 0.5

    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        HydraConfig.instance().set_config(compose("compare", return_hydra_config=True))
        monkeypatch.setattr(launch, "launcher_overrides", lambda: ["hydra.help.app_name=mine"])
        hydra = launch.launcher("pretrain", record)
        assert hydra.config.hydra.help.app_name == "mine"
        assert type(hydra).__name__ == "BasicLauncher"
        (returned,) = hydra.launch([["train.steps=7", "hydra.sweep.subdir=one"]], initial_job_idx=0)
    assert returned.return_value == 0.5
    assert seen == [(7, "study_run", RunMode.MULTIRUN, Path("outputs/pretrain/study_runs/one").resolve())]


def test_keys_depend_on_settings_that_affect_the_weights_and_not_on_how_they_are_written() -> None:
    def key(**changes: Any) -> str:
        train = {"steps": 3, "save_minutes": 5, "keep_every": None} | changes.pop("train", {})
        dataset = {"root": "photos", "classes": [1, 2]} | changes.pop("dataset", {})
        config = {"train": train, "dataset": dataset, "unlabeled": None, "root": "x", "flag": True} | changes
        return launch.study_run(Stages(named_stage, job), "pretrain", "a", config, [], "images").key

    moved = {"root": "moved", "classes": [1.0, 2]}
    same = [key(), key(dataset=moved, unlabeled="more"), key(train={"save_minutes": 1, "keep_every": 10, "steps": 3.0})]
    assert len({*same}) == 1
    others = [key(train={"steps": 4}), key(dataset={"classes": [2, 1]}), key(root="y"), key(flag=1), key(flag=False)]
    assert len({same[0], *others}) == 6


def test_keys_change_with_the_users_own_code() -> None:
    def key(file: str, text: str) -> str:
        Path(file).write_text(text)
        config = {"pretext": {"augment": [{"_target_": "own_inner.made"}], "_target_": "own_task.made"}}
        return launch.study_run(Stages(named_stage, job), "pretrain", "a", config, [], "images").key

    sys.path.insert(0, str(Path.cwd()))
    code = "def made(): ...\n"
    Path("own_task.py").write_text(code)
    first = key("own_inner.py", code)
    assert key("own_inner.py", code) == first
    assert len({first, key("own_inner.py", f"{code}# changed"), key("own_task.py", f"{code}# changed")}) == 3


def test_the_folder_of_a_run_has_a_short_plain_name() -> None:
    run = launch.study_run(Stages(named_stage, job), "pretrain", f"a ü/{'b' * 99}.-_", {}, ["x=1"])
    assert run.name == f"a___{'b' * 56}"
    assert run.directory == Path(f"outputs/pretrain/study_runs/{run.name}-{run.key}")
    assert (run.stage, run.overrides, len(run.key)) == ("pretrain", ("x=1",), 12)


def run_of(name: str, done: bool = False) -> launch.StudyRun:
    run = launch.StudyRun("finetune", name, (f"init={name}", "a=b c"), "0")
    return finish(run) if done else run


def finish(run: launch.StudyRun) -> launch.StudyRun:
    known = {"stage": run.stage, "status": "finished", "config": {"seed": 0}, "overrides": [], "wall_time_seconds": 1.0}
    run.directory.mkdir(parents=True)
    write_json(run.directory / "summary.json", {**known, "val/accuracy": 0.5})
    (run.directory / "last.pt").touch()
    return run


class BasicLauncher:
    """Finishes all jobs but those that are to fail."""

    def __init__(self, **errors: BaseException) -> None:
        self.errors, self.calls = errors, list[tuple[int, list[str]]]()

    def launch(self, jobs: list[list[str]], initial_job_idx: int) -> None:
        self.calls.append((initial_job_idx, [j[0] for j in jobs]))
        for init, _, folder in jobs:
            name = init.removeprefix("init=")
            assert folder == f"hydra.sweep.subdir={name}-0"
            if name in self.errors:
                raise self.errors[name]
            finish(run_of(name))


class OtherLauncher(BasicLauncher):
    pass


def launched(runs: list[launch.StudyRun], by: BasicLauncher, monkeypatch: pytest.MonkeyPatch) -> BasicLauncher:
    monkeypatch.setattr(launch, "launcher", lambda stage, job: by if stage == "finetune" else None)
    launch.launch_all(runs, Stages(named_stage, job), "fold")
    return by


@pytest.mark.parametrize("basic", [True, False])
def test_unfinished_runs_are_launched_once(
    basic: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "sslrun")
    runs = [run_of("a"), run_of("b", True), run_of("a"), run_of("c")]
    made = launched(runs, BasicLauncher() if basic else OtherLauncher(), monkeypatch)
    first, second = "init=a", "init=c"
    assert made.calls == ([(0, [first]), (1, [second])] if basic else [(0, [first, second])])
    assert "Skipping 2 of 4 finetune runs: already finished." in caplog.text
    assert "fold 1/2  a  val accuracy 50.0 %" in caplog.text
    assert re.search(r"fold 2/2  c  val accuracy 50.0 %$", caplog.text, re.M)  # nothing is left
    assert launched(runs, BasicLauncher(), monkeypatch).calls == []


def test_the_others_run_after_a_failure_and_a_signal_stops_the_study(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runs = [run_of(n) for n in "abc"]
    with pytest.raises(UserError, match="1 of 3 finetune runs of the study failed") as failed:
        launched(runs, BasicLauncher(b=FileExistsError(17, "in the way", "b")), monkeypatch)
    assert str(failed.value).endswith("repeats only these:\n  sslrun finetune init=b 'a=b c'")
    assert "b: in the way" in caplog.text
    assert [r.finished() for r in runs] == [True, False, True]
    with pytest.raises(signals.Stopped) as stopped:
        launched(runs, BasicLauncher(b=SystemExit(143)), monkeypatch)
    assert stopped.value.number == signal.SIGTERM
    with pytest.raises(SystemExit) as ended:
        launched(runs, BasicLauncher(b=SystemExit(1)), monkeypatch)
    assert ended.value.code == 1


def test_runs_of_a_study_get_the_launcher_and_the_config_folder_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=x", "hydra.searchpath=[a]"]
    sources = [SimpleNamespace(provider="main", path="conf"), SimpleNamespace(provider="command-line", path="mine")]
    hydra = SimpleNamespace(overrides=SimpleNamespace(hydra=given), runtime=SimpleNamespace(config_sources=sources))
    monkeypatch.setattr(launch, "HydraConfig", SimpleNamespace(get=lambda: hydra))
    assert launch.launcher_overrides() == [given[0], given[1], given[3]]
    assert launch.user_config_dir() == "mine"
    sources.pop()
    assert launch.user_config_dir() is None


def test_a_pretraining_without_weights_is_not_finished_and_a_damaged_one_is_named() -> None:
    run = launch.StudyRun("pretrain", "a", (), "0")
    assert not run.finished()
    finish(run)
    assert run.finished()
    (run.directory / "last.pt").unlink()
    assert not run.finished()
    (run.directory / "summary.json").write_text("{")
    with pytest.raises(UserError, match=f"move {run.directory} away to repeat the run"):
        run.finished()


def test_the_time_left_is_that_of_the_finished_runs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "sslrun")
    now = [0.0]
    monkeypatch.setattr(launch.time, "monotonic", lambda: now[0])
    runs = [run_of(n) for n in "abcd"]
    progress = launch._Progress(runs, "fold")
    finish(runs[0])
    now[0] = 20.0
    progress.show()
    assert caplog.messages == ["fold 1/4  a  val accuracy 50.0 %  60 s left"]
