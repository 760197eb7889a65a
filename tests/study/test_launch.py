"""Runs of a study: named by a hash of their inputs, never repeated."""

import importlib.util
import json
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from PIL import Image

from sslrun.base import console
from sslrun.base.paths import CONF
from sslrun.runs.run import Stage, Stages
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


def test_failed_runs_are_listed_and_only_they_are_repeated(
    in_study: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    smaller = ("compare", *SMALL_STUDY, "pretexts=[rotation]", "labels_per_class=[3]", "seeds=1")  # runs of the other
    (victim,) = Path("outputs/finetune/study_runs").glob("scratch_finetune_*_seed0*")
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
    overrides = ("dataset=folder", "dataset.image_size=16", "dataset.val_fraction=0.3", "pretexts=[rotation]",
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
    overrides = (*SMALL_STUDY, "pretexts=[turned]", "labels_per_class=[3]", "seeds=1", "mode=probe")
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


def test_the_private_api_of_hydra_launches_a_job() -> None:
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
        hydra = launch.launcher("pretrain", record)
        assert type(hydra).__name__ == "BasicLauncher"
        (returned,) = hydra.launch([["train.steps=7", "hydra.sweep.subdir=one"]], initial_job_idx=0)
    assert returned.return_value == 0.5
    assert seen == [(7, "study_run", RunMode.MULTIRUN, Path("outputs/pretrain/study_runs/one").resolve())]
