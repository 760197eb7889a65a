"""Studies: what is run, what is never run twice, what is said of it; and `mode=auto`."""

import contextlib
import csv
import html
import importlib.util
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import xml.etree.ElementTree
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
from sslrun.study import launch
from tests.conftest import QUICK, REPOSITORY, Cli
from tests.test_cli import runs, summary
from tests.test_faults import ended, start, wait_for

DIGITS = ("dataset=digits", "dataset.max_images=300", "dataset.image_size=16", "backbone.widths=[8,16]", *QUICK)
STEPS = ("train.steps=4", "train.batch_size=32", "train.evaluations=1", "finetune.train.steps=4",
         "finetune.train.evaluations=1")  # fmt: skip
SHORT = (*DIGITS, "dataset.val_fraction=0.4", "search=[]", *STEPS)  # 120 pictures of validation, on which auto chooses
STUDY = ("compare", *SHORT, "pretexts=[rotation,simclr]", "labels_per_class=[3]", "seeds=2")
RUNS = 2 * (2 + 2 * 2)  # seeds x (scratch and frozen, two tasks in two modes)


def study_runs(stage: str) -> dict[str, int]:
    """Return the runs that studies made, with the time of their last change."""
    return {p.parent.name: p.stat().st_mtime_ns for p in Path("outputs", stage, "study_runs").glob("*/summary.json")}


def table(study: Path) -> list[dict[str, str]]:
    with (study / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="session")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished study, not to be written to."""
    import os

    from tests.conftest import run_here

    top = tmp_path_factory.mktemp("studied")
    before, cache = Path.cwd(), os.environ.get("SSLRUN_CACHE")
    os.chdir(top)
    os.environ["SSLRUN_CACHE"] = str(top / "cache")
    try:
        assert run_here(*STUDY) == 0
    finally:
        os.chdir(before)
        if cache is not None:
            os.environ["SSLRUN_CACHE"] = cache
    return top


@pytest.fixture
def in_study(studied: Path, tmp_path: Path) -> Path:
    """A copy of the finished study, as the current folder; the study's own directory."""
    shutil.copytree(studied / "outputs", tmp_path / "outputs")
    return runs("compare")[0]


def test_a_study_has_every_network_on_the_same_subsets_and_all_that_is_promised(in_study: Path) -> None:
    assert len(study_runs("pretrain")) == 2
    assert len(study_runs("finetune")) == len(study_runs("evaluate")) == RUNS
    rows = table(in_study)
    networks = {(r["initialization"], r["mode"]) for r in rows}
    modes = ("finetune", "probe", "auto")
    assert networks == {("scratch", "finetune"), ("scratch", "probe")} | {
        (s, m) for s in ("rotation", "simclr") for m in modes
    }
    for seed in "01":
        same = [r for r in rows if r["seed"] == seed]
        assert len(same) == 8
        assert {r["labels"] for r in same} == {"30"}
        assert len({r["subset"] for r in same}) == 1
    assert len({r["subset"] for r in rows}) == 2
    figures = {p.name for p in (in_study / "figures").iterdir()}
    for name in ("label_efficiency", "learning_curves", "confusion_matrices", "class_gains", "embeddings"):
        assert {f"{name}.png", f"{name}.svg"} <= figures
    answer = summary(in_study)
    assert len(answer["conclusions"]) == 2
    assert {"choices", "pretraining_seconds", "data_fingerprint", "seeds", "command"} <= answer.keys()
    assert Path(answer["best_classifier"], "best.pt").is_file()


def test_accuracies_are_those_of_the_evaluations_and_auto_is_chosen_on_validation_alone(in_study: Path) -> None:
    rows = table(in_study)
    for r in rows:
        predicted = np.load(Path(r["evaluated"]) / "predictions.npz")
        right = predicted["probabilities"].argmax(1) == predicted["labels"]
        assert float(r["test_accuracy"]) == pytest.approx(right.mean(), abs=0.006)  # they are kept with 11 bits
    for r in [r for r in rows if r["mode"] == "auto"]:
        rivals = [
            o
            for o in rows
            if o["mode"] != "auto"
            and (o["subset"], o["seed"]) == (r["subset"], r["seed"])
            and (
                o["initialization"] == r["initialization"]
                or (o["initialization"], o["mode"]) == ("scratch", "finetune")
            )
        ]
        assert len(rivals) == 3
        assert float(r["val_accuracy"]) == max(float(o["val_accuracy"]) for o in rivals)


def test_every_trained_network_is_tried_with_each_setting_and_the_best_on_validation_is_tested(cli: Cli) -> None:
    tried = 'search=["train.learning_rate=0.002","train.learning_rate=1e-7"]'
    short = [s for s in SHORT if s != "search=[]"]
    answer = cli("compare", *short, tried, "pretexts=[rotation]", "labels_per_class=[3]", "seeds=1")
    assert answer.code == 0, answer.err
    assert len(study_runs("finetune")) == 2 * 2 + 2  # scratch and rotation with both, two probes with none
    assert len(study_runs("evaluate")) == 4
    made = {p: summary(Path("outputs/finetune/study_runs", p)) for p in study_runs("finetune")}
    (study,) = runs("compare")
    trained = [r for r in table(study) if r["mode"] == "finetune"]
    assert [r["initialization"] for r in trained] == ["scratch", "rotation"]
    for r in trained:
        both = {
            s["config"]["train"]["learning_rate"]: s
            for p, s in made.items()
            if p.startswith(f"{r['initialization']}_fine")
        }
        assert set(both) == {0.002, 1e-7}
        scores = {rate: (s["val/accuracy"], -s["val/loss"]) for rate, s in both.items()}
        assert r["initialization"] != "scratch" or scores[0.002] != scores[1e-7]
        chosen = float(r["setting"].partition("=")[2])
        assert scores[chosen] == max(scores.values())
        assert summary(Path(r["finetuned"]))["config"]["train"]["learning_rate"] == chosen
    assert re.search(rf"{trained[0]['setting']} \([12] of 2\)", (study / "report.html").read_text())
    own = cli("report", str(study))  # in which nothing is named apart for what was searched
    assert "from scratch " in own.err
    assert "learning_rate" not in own.err
    for given, said_of in (
        ('search=["seed=3"]', "search: seed=3: say a setting of the training"),
        ('search=["train.steps=many"]', "search: train.steps"),
        ('search=["train.lerning_rate=1"]', "no such key; did you mean train.learning_rate?"),
    ):
        wrong = cli("compare", *short, given, "pretexts=[rotation]")
        assert wrong.code == 1
        assert said_of in wrong.err
        assert "Traceback" not in wrong.err


def test_what_the_user_sets_is_not_searched() -> None:
    from sslrun.runs.run import Stages
    from sslrun.stages.table import job, stage
    from sslrun.study.choice import searched

    stages = Stages(stage, job)

    both = ["augment.probability=0.5", "augment.probability=0"]
    assert searched(stages, both, []) == both
    assert searched(stages, [*both, "label_smoothing=0"], ["augment.probability"]) == ["label_smoothing=0"]


@pytest.mark.slow
def test_what_is_finished_is_never_done_again(in_study: Path, cli: Cli) -> None:
    before = {s: study_runs(s) for s in ("pretrain", "finetune", "evaluate")}
    answer = cli(*STUDY)
    assert answer.code == 0, answer.err
    assert {s: study_runs(s) for s in before} == before
    assert "All runs of this study are finished." in answer.err
    assert [r["test_accuracy"] for r in table(runs("compare")[1])] == [r["test_accuracy"] for r in table(in_study)]
    more = cli(*STUDY[:-1], "seeds=3")  # another subset: only its runs
    assert more.code == 0, more.err
    assert len(study_runs("pretrain")) == 2
    assert len(study_runs("finetune")) == RUNS * 3 // 2
    assert all(study_runs(s)[k] == v for s, old in before.items() for k, v in old.items())
    other = cli(*STUDY, "finetune.label_smoothing=0.2")  # another recipe: all classifiers, no pretraining
    assert other.code == 0, other.err
    assert len(study_runs("pretrain")) == 2
    assert len(study_runs("finetune")) == RUNS * 3 // 2 + RUNS


@pytest.mark.slow
def test_with_little_validation_auto_chooses_on_labels_that_are_held_out_in_turns(cli: Cli) -> None:
    answer = cli(
        "compare", *SHORT, "pretexts=[rotation]", "labels_per_class=[3]", "seeds=1", "dataset.val_fraction=0.1"
    )
    assert answer.code == 0, answer.err
    assert (
        len(study_runs("finetune")) == 4 + 3 * 3
    )  # scratch, frozen, finetuned, probe; all but frozen without each third
    val = [p for p in study_runs("finetune") if "without" in p]
    result = {n: summary(Path("outputs/finetune/study_runs", n)) for n in val}
    assert all(s["labels"]["train"] == 20 and s["labels"]["validation"] > 10 for s in result.values())
    rows = table(runs("compare")[0])
    for r in rows:
        own = [s["val/accuracy"] for n, s in result.items() if n.startswith(f"{r['initialization']}_{r['mode']}_")]
        if own:
            assert float(r["cv_accuracy"]) == pytest.approx(np.mean(own))
    (auto,) = [r for r in rows if r["mode"] == "auto"]
    assert float(auto["cv_accuracy"]) == max(float(r["cv_accuracy"]) for r in rows if r["cv_accuracy"])


@pytest.mark.slow
def test_with_little_validation_settings_are_chosen_on_labels_that_are_held_out_in_turns(cli: Cli) -> None:
    tried = 'search=["train.learning_rate=0.002","train.learning_rate=1e-7"]'
    few = [s for s in SHORT if s != "search=[]"] + ["pretexts=[rotation]", "labels_per_class=[3]", "seeds=1"]
    answer = cli("compare", *few, "dataset.val_fraction=0.1", "mode=probe", tried)
    assert answer.code == 0, answer.err
    made = {p: summary(Path("outputs/finetune/study_runs", p)) for p in study_runs("finetune")}
    val: dict[tuple[str, float], list[float]] = {}
    for name, s in made.items():
        if s["config"]["fold"]:
            val.setdefault((name.split("_")[0], s["config"]["train"]["learning_rate"]), []).append(s["val/accuracy"])
    assert {k: len(v) for k, v in val.items()} == {
        ("scratch", 0.002): 3, ("scratch", 1e-7): 3, ("rotation", 0.002): 3,
    }  # fmt: skip
    rows = {(r["initialization"], r["mode"]): r for r in table(runs("compare")[0])}
    (scratch, probe) = rows["scratch", "finetune"], rows["rotation", "probe"]
    mean = {k: float(np.mean(v)) for k, v in val.items()}
    assert float(scratch["cv_accuracy"]) == pytest.approx(max(mean["scratch", 0.002], mean["scratch", 1e-7]))
    assert mean["scratch", float(scratch["setting"].partition("=")[2])] == max(
        m for (initialization, _), m in mean.items() if initialization == "scratch"
    )
    assert float(probe["cv_accuracy"]) == pytest.approx(mean["rotation", 0.002])
    best = max((scratch, probe), key=lambda r: float(r["cv_accuracy"]))
    assert summary(runs("compare")[0])["best_classifier"] == best["finetuned"]
    own = cli("report", str(runs("compare")[0]))  # of probes alone
    assert own.code == 0, own.err
    assert re.search(r"rotation, 3\d? labels: ", own.err + own.out)
    before = study_runs("finetune")
    same = cli(
        "compare", *few, "dataset.val_fraction=0.1", "mode=probe", "search=[]", "finetune.train.learning_rate=2e-3"
    )
    assert same.code == 0, same.err
    assert study_runs("finetune") == before  # a setting is the same however it is said


@pytest.mark.slow
def test_what_is_the_same_is_taken_once_and_what_is_lost_is_made_anew(cli: Cli) -> None:
    twice = ('pretexts=[rotation,"rotation  train.steps=4"]', "label_fractions=[0.01,0.02]", "mode=finetune", "seeds=1")
    answer = cli("compare", *SHORT, *twice)
    assert answer.code == 0, answer.err
    assert "0.01 and 0.02 of the labels are the same 10: they are taken once." in answer.err
    assert "rotation  train.steps=4 is the same as rotation: it is taken once." in answer.err
    assert (len(study_runs("pretrain")), len(study_runs("finetune"))) == (1, 3)
    (study,) = runs("compare")
    assert len(table(study)) == 3
    own = cli("report", str(study))  # in which nothing chooses, since no probe was asked for
    assert own.code == 0, own.err
    assert "auto" not in own.out + own.err
    (weights,) = {p.parent for p in Path("outputs/pretrain/study_runs").glob("*/*.pt")}
    before = (weights / "summary.json").read_text()
    for path in weights.glob("*.pt"):
        path.unlink()
    again = cli("compare", *SHORT, *twice[:-1], "seeds=2")
    assert again.code == 0, again.err
    assert (len(study_runs("pretrain")), len(study_runs("finetune"))) == (1, 6)
    assert json.loads(before)["data_fingerprint"] == summary(weights)["data_fingerprint"]
    damaged = Path("outputs/finetune/study_runs", min(study_runs("finetune")))
    (damaged / "summary.json").write_text("{")
    wrong = cli("compare", *SHORT, *twice)
    assert wrong.code == 1
    assert f"move {damaged} away to have it made anew" in wrong.err
    (study / "results.csv").write_text("begin,mode\n1,2\n")
    for there, words in ((study, "is not as a study writes it"), (runs("compare")[-1], "has not come to its end")):
        wrong = cli("report", str(there))
        assert wrong.code == 1
        assert words in wrong.err
        assert "Traceback" not in wrong.err


@pytest.mark.slow
def test_what_is_chosen_by_depends_on_the_pictures_of_the_classifiers(cli: Cli) -> None:
    answer = cli("compare", *SHORT, "dataset.max_images=600", "dataset.val_fraction=0.2", "pretexts=[rotation]",
               "labels_per_class=[4]", "seeds=1", 'finetune.dataset.classes=["1","7"]')  # fmt: skip
    assert answer.code == 0, answer.err
    made = [summary(Path("outputs/finetune/study_runs", p)) for p in study_runs("finetune")]
    assert any("fold" in s["config"] and s["config"]["fold"] for s in made)  # 57 of validation, not 120
    assert {s["labels"]["train"] for s in made if not s["config"]["fold"]} == {8}


@pytest.mark.slow
def test_joblib_spreads_the_parts_and_finds_the_same(in_study: Path, cli: Cli) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    there = table(in_study)
    shutil.rmtree("outputs")
    answer = cli(*STUDY, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert answer.code == 0, answer.err
    result = table(runs("compare")[0])
    assert [r["test_accuracy"] for r in result] == [r["test_accuracy"] for r in there]
    assert len(study_runs("evaluate")) == RUNS
    messages = re.findall(rf"finetune (\d+)/{RUNS} .*?(left)?$", answer.err, re.M)  # while the others were at work
    assert messages == [(str(i + 1), "left" * (i + 1 < RUNS)) for i in range(RUNS)]


@pytest.mark.slow
def test_a_stopped_study_goes_on(studied: Path) -> None:
    process = start(*STUDY)
    wait_for(process, lambda: len(list(Path("outputs/finetune/study_runs").glob("*/best.pt"))) > 3)
    process.terminate()
    assert ended(process) == 128 + signal.SIGTERM
    answer = Path("said").read_text()
    command = re.search(r"Go on with: sslrun compare (resume=\S+)", answer)
    assert command is not None, answer
    assert answer.count("Go on with") == 1
    (study,) = runs("compare")
    assert summary(study)["status"] == "interrupted"
    done = {
        k: v
        for k, v in study_runs("finetune").items()
        if summary(Path("outputs/finetune/study_runs", k))["status"] == "finished"
    }
    assert 3 <= len(done) < RUNS
    process = start("compare", command[1])
    assert ended(process) == 0, Path("said").read_text()
    assert {k: v for k, v in study_runs("finetune").items() if k in done} == done
    there = next((studied / "outputs/compare").iterdir())
    assert [r["test_accuracy"] for r in table(study)] == [r["test_accuracy"] for r in table(there)]


def test_failed_parts_are_named_and_the_same_command_does_them_alone(
    in_study: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = sorted(Path("outputs/finetune/study_runs").glob("scratch_finetune*"))[0]
    shutil.rmtree(victim)
    victim.write_text("in the way")
    answer = cli(*STUDY)
    assert answer.code == 1
    assert "File exists" in answer.err
    assert "1 of 1 finetune runs of the study failed" in answer.err
    assert "Traceback" not in answer.err
    victim.unlink()
    monkeypatch.setattr(console, "QUIET_EVERY", 0.0)
    again = cli(*STUDY)
    assert again.code == 0
    assert re.search(r"^finetune \d+/\d+, \d+ images/s", again.err, re.M)  # a part, too, tells how far it is


@pytest.mark.slow
def test_two_settings_of_one_task_are_two_networks(cli: Cli) -> None:
    two = 'pretexts=[simclr,"simclr pretext.temperature=0.5 train.steps=3"]'
    answer = cli("compare", *SHORT, two, "labels_per_class=[3]", "seeds=1", "mode=probe")
    assert answer.code == 0, answer.err
    result = [json.loads(p.read_text())["config"] for p in Path("outputs/pretrain/study_runs").glob("*/summary.json")]
    assert sorted((c["pretext"]["temperature"], c["train"]["steps"]) for c in result) == [(0.2, 4), (0.5, 3)]
    assert {r["initialization"] for r in table(runs("compare")[0])} == {"scratch", "simclr", two.split('"')[1]}
    assert "one label subset shows nothing" in answer.err


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("pretexts=[simclrr]",), "no pretext 'simclrr'; did you mean simclr?"),
        (('pretexts=["simclr pretext.temprature=1"]',), "pretext.temprature"),
        (('pretexts=["simclr pretext.temperature=-1"]',), "pretext.temperature: must be greater than 0"),
        (("pretexts=[]",), "pretexts: must be a list of at least 1"),
        (("finetune.train.stepz=3",), "finetune.train.stepz: no such key; did you mean train.steps?"),
        (("finetune.label_smoothing=2",), "finetune.label_smoothing: must be at most 1"),
        (("label_fractions=[2.0]",), "label_fraction must be at most 1"),
        (("label_fractions=0.1",), "label_fractions: must be a list"),
        (("budget=soon",), "budget=soon: say a time such as 90s, 30m or 2h"),
        (("budget=3s",), "one epoch of every pretraining"),
        (("mode=knn",), "mode: must be one of"),
        (("-m", "seeds=1,2"), "a study is a sweep of its own"),
        (('dataset.classes=["1"]',), "two classes of labeled pictures"),
        (('pretexts=["simclr backbone=resnet18"]',), "backbone=resnet18: a study has one network and one data set"),
        (('pretexts=["simclr train.epochs=3"]', "budget=9m"), "budget= sets the epochs of every pretraining"),
        (("finetune.backbone=resnet18",), "the study sets backbone itself"),
        (("finetune.dataset.image_size=8",), "the study sets dataset.image_size itself"),
        (("finetune.optimizer=sgd", "finetune.optimizer.betas=[0.9,0.9]"), "finetune.optimizer.betas: no such key"),
        (('pretexts=["simclr unlabeled=more"]',), "unlabeled=more: a study has one network and one data set"),
        (("imagenet=true",), "imagenet=true: there are no ImageNet weights for this backbone"),
    ],
)
def test_mistakes(cli: Cli, overrides: tuple[str, ...], words: str) -> None:
    flags = [a for a in overrides if a.startswith("-")]
    answer = cli("compare", *flags, *SHORT, *(a for a in overrides if a not in flags))
    assert words in answer.err
    assert answer.code == 1
    assert "Traceback" not in answer.err
    assert not study_runs("pretrain")


@pytest.mark.slow
def test_a_budget_sets_the_epochs_and_is_said_before_the_start(cli: Cli) -> None:
    quick = ("labels_per_class=[2]", "seeds=1", "mode=probe", "budget=20s")
    answer = cli("compare", *(s for s in SHORT if not s.startswith("train.steps")), *quick)
    assert answer.code == 0, answer.err
    epochs = summary(runs("compare")[0])["config"]["train"]["epochs"]
    assert epochs >= 1
    assert f"budget=20s leaves room for {epochs} epochs" in answer.err
    assert answer.err.index("about") < answer.err.index("pretrain 1/1")
    (pretrained,) = Path("outputs/pretrain/study_runs").glob("*/summary.json")
    assert json.loads(pretrained.read_text())["config"]["train"]["epochs"] == epochs
    again = cli("compare", *(s for s in SHORT if not s.startswith("train.steps")), *quick)
    assert again.code == 0, again.err
    assert "The same study was run before" in again.err
    assert "All runs of this study are finished." in again.err


@pytest.mark.slow
def test_parts_are_found_again_wherever_the_pictures_lie_and_however_often_they_were_saved(
    cli: Cli, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for i in range(48):
        place = Path("photos", ("train", "test")[i % 4 == 0], "ab"[i % 2])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(place / f"{i}.png")
    overrides = ("dataset=folder", "dataset.image_size=16", "dataset.val_fraction=0.3", "pretexts=[rotation]",
             "seeds=1", "labels_per_class=[3]", "mode=probe", "backbone.widths=[8,16]", *STEPS, *QUICK)  # fmt: skip
    assert cli("compare", *overrides, "dataset.root=photos").code == 0
    before = {s: study_runs(s) for s in ("pretrain", "finetune", "evaluate")}
    Path("photos").rename("pictures")
    answer = cli("compare", *overrides, "dataset.root=pictures", "train.save_minutes=1")
    assert answer.code == 0, answer.err
    assert {s: study_runs(s) for s in before} == before
    for stage in ("finetune", "evaluate"):  # what is done again reads the pictures where they are now
        shutil.rmtree(next(Path("outputs", stage, "study_runs").glob("rotation*")))
    answer = cli("compare", *overrides, "dataset.root=pictures")
    assert answer.code == 0, answer.err
    assert {s: set(study_runs(s)) for s in before} == {s: set(b) for s, b in before.items()}


@pytest.mark.slow
def test_a_study_with_a_task_of_ones_own_goes_on_without_saying_where_it_lies(cli: Cli) -> None:
    Path("mine/pretext").mkdir(parents=True)
    ours = (REPOSITORY / "conf/pretext/rotation.yaml").read_text()
    Path("mine/pretext/turned.yaml").write_text(ours.replace("copies: 4", "copies: 1"))
    overrides = (*SHORT, "pretexts=[turned]", "labels_per_class=[3]", "seeds=1", "mode=probe")
    assert cli("compare", "-cd", "mine", *overrides, "hydra.launcher._target_=no.such").code == 1
    shutil.rmtree("outputs")
    assert cli("compare", "-cd", "mine", *overrides).code == 0
    (study,) = runs("compare")
    result = json.loads((study / "summary.json").read_text())
    (study / "summary.json").write_text(json.dumps(result | {"status": "interrupted"}))
    answer = cli("compare", f"resume={study}")
    assert answer.code == 0, answer.err
    assert "turned, probe" in answer.err
    Path("mine").rename("ours")
    answer = cli("compare", f"resume={study}")
    assert answer.code == 1
    assert "which is not there: say -cd" in answer.err


# ---------------------------------------------------------------------------------------------- what a run is made of


def copy_of_the_package(folder: Path) -> Stages:
    """Copy the code into a folder, and return the commands as they stand there."""
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
def test_a_study_is_run_anew_when_code_that_makes_numbers_has_changed(
    changed: str, matters: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key() -> str:
        launch.code_version.cache_clear()
        return launch.study_run(stages, "pretrain", "simclr", {"seed": 0}, ["seed=0"], "pictures").key

    stages = copy_of_the_package(tmp_path / "sslrun")
    monkeypatch.setattr(launch, "__file__", str(tmp_path / "sslrun/study/launch.py"))
    before = key()
    assert key() == before
    with (tmp_path / "sslrun" / changed).open("a") as file:
        file.write("# one more line\n")
    assert (key() != before) == matters


def test_a_job_is_launched_by_what_hydra_keeps_to_itself() -> None:
    """Pinned: `hydra._internal.callbacks.Callbacks` is there, and a launcher that is built with it runs a job."""
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


# ---------------------------------------------------------------------------------------------------- the page


def test_the_page_holds_all_it_shows(in_study: Path) -> None:
    text = (in_study / "report.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    assert not re.search(r"@import|url\((?!#)", text)
    for heading in ("number of labels", "Learning curves", "taken for what", "Gain by class", "confident mistakes",
                    "before and after", "What was run"):  # fmt: skip
        assert heading in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    answer = summary(in_study)
    assert all(c in html.unescape(text) for c in answer["conclusions"])
    assert answer["command"] in html.unescape(text)
    for svg in re.findall(r"<svg.*?</svg>", text, re.S):
        ids = re.findall(r'\bid="([^"]+)"', svg)
        assert len(ids) == len(set(ids))
        used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg))
        assert {a or b for a, b in used} <= set(ids)
        xml.etree.ElementTree.fromstring(svg)
    every = re.findall(r'<svg[^>]*>|\bid="([^"]+)"', text)
    ids = [i for i in every if i]
    assert len(ids) == len(set(ids))  # of all figures together


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
@pytest.mark.parametrize("width", [400, pytest.param(1200, marks=pytest.mark.slow)])
def test_a_browser_shows_it_without_the_network(in_study: Path, width: int) -> None:
    assert CHROMIUM is not None
    page = in_study.resolve() / "report.html"
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},900",
             "--virtual-time-budget=3000",
             "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--user-data-dir=profile"]  # fmt: skip
    probe = Path("probe.html")
    probe.write_text(
        page.read_text().replace(
            "</body>",
            "<script>const all = [...document.querySelectorAll('figure svg, figure img')];"
            "document.title = JSON.stringify({wide: document.documentElement.scrollWidth, "
            "seen: document.documentElement.clientWidth, "
            "figures: all.filter(f => f.getBoundingClientRect().height > 50).length})</script></body>",
        )
    )
    done = subprocess.run(
        [CHROMIUM, *flags, "--dump-dom", probe.resolve().as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.S)
    assert title is not None
    result: dict[str, Any] = json.loads(title[1].replace("&quot;", '"'))
    assert result["wide"] <= result["seen"]  # nothing sticks out of the page
    assert result["figures"] >= 6
    assert "ERR_" not in done.stderr
    assert "Uncaught" not in done.stderr


def test_report_makes_the_same_of_runs_that_are_there(in_study: Path, cli: Cli) -> None:
    answer = cli("report", str(in_study))
    assert answer.code == 0, answer.err
    (report,) = Path("outputs/report").iterdir()
    assert {tuple(sorted(r.items())) for r in table(report)} == {tuple(sorted(r.items())) for r in table(in_study)}
    classifiers = sorted(str(p) for p in Path("outputs/finetune/study_runs").iterdir())
    answer = cli("report", *classifiers)
    assert answer.code == 0, answer.err
    assert "rotation, auto" in answer.err


def test_report_says_what_it_cannot_use(in_world: Path, cli: Cli) -> None:
    (classifier,) = runs("finetune")
    assert f"was not evaluated yet: sslrun evaluate run={classifier}" in cli("report", str(classifier)).err
    assert "is a pretrain run" in cli("report", str(runs("pretrain")[0])).err
    assert "no run of sslrun there" in cli("report", "nowhere").err
    assert cli("evaluate", *QUICK).code == 0
    answer = cli("report", str(classifier))
    assert answer.code == 0, answer.err
    assert "nothing to compare with" in answer.err


@pytest.mark.slow
def test_tensorboards_hparams_tab_compares_a_studys_classifiers(in_study: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    board = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", "--logdir", "outputs/evaluate", "--port", str(port)],
        stderr=subprocess.DEVNULL,
    )
    try:
        query = {"experimentName": "", "allowedStatuses": ["STATUS_SUCCESS"], "colParams": [], "sliceSize": 100}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/data/plugin/hparams/session_groups",
            json.dumps(query).encode(),
            {"Content-Type": "application/json"},
        )
        groups: list[dict[str, Any]] = []
        for _ in range(120):  # until it has read them all
            with contextlib.suppress(OSError):
                groups = json.load(urllib.request.urlopen(request)).get("sessionGroups", [])
            if len(groups) == RUNS:
                break
            time.sleep(0.5)
    finally:
        board.terminate()
        board.wait()
    assert len(groups) == RUNS
    shown = {(g["hparams"]["init"], g["hparams"]["mode"], g["hparams"]["seeds.subset"]) for g in groups}
    assert shown == {
        (s, m, n) for s in ("scratch", "rotation", "simclr") for m in ("finetune", "probe") for n in (0, 1)
    }
    metrics = [{m["name"]["tag"]: m["value"] for m in g["metricValues"]} for g in groups]
    kept = [float(r["test_accuracy"]) for r in table(in_study) if r["mode"] != "auto"]
    assert sorted(m["test/accuracy"] for m in metrics) == pytest.approx(sorted(kept), abs=1e-6)


@pytest.mark.slow
def test_report_tells_runs_with_other_settings_apart(in_world: Path, cli: Cli) -> None:
    short = ("mode=finetune", "label_fraction=0.5", "train.evaluations=1", *QUICK)
    assert cli("finetune", "-m", "init=scratch,simclr", "train.steps=2", *short).code == 0
    assert cli("finetune", "train.steps=3", *short).code == 0
    for run in [p for p in runs("finetune")][-2:]:
        assert cli("evaluate", f"run={run}", *QUICK).code == 0
    evaluated = [str(p) for p in runs("evaluate")]
    answer = cli("report", *evaluated, str(Path("outputs/evaluate")))
    assert "simclr train.steps=3, finetuned" in answer.err
    assert "simclr, finetuned" in answer.err
