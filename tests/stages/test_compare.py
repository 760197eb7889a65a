"""`sslrun compare`."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from sslrun.data.dataset import load_train
from sslrun.data.labels import LabelBudget
from sslrun.run.run import Run, Stages
from sslrun.stages import compare
from sslrun.stages.table import job, stage
from sslrun.study.launch import StudyRun
from sslrun.study.plan import Cell, Plan, StudyData
from tests.helpers import QUICK, SMALL_STUDY, STUDY_RUNS, Cli, runs, study_runs, study_table, summary


def test_a_study_has_all_networks_on_the_same_subsets_and_all_outputs(in_study: Path) -> None:
    assert len(study_runs("pretrain")) == 2
    assert len(study_runs("finetune")) == len(study_runs("evaluate")) == STUDY_RUNS
    rows = study_table(in_study)
    networks = {(r["initialization"], r["mode"]) for r in rows}
    modes = ("finetune", "probe", "auto")
    assert networks == {("scratch", "finetune"), ("scratch", "probe"), ("pixels", "probe"), ("pixels", "knn")} | {
        (s, m) for s in ("rotation", "simclr") for m in modes
    }
    for seed in "01":
        same = [r for r in rows if r["seed"] == seed]
        assert len(same) == 10
        assert {(r["labels"], r["labels_train"], r["labels_val"]) for r in same} == {("30", "30", "0")}
        assert len({r["subset"] for r in same}) == 1
    assert len({r["subset"] for r in rows}) == 2
    figures = {p.name for p in (in_study / "figures").iterdir()}
    for name in ("label_efficiency", "confusion_matrices", "class_gains", "embeddings"):
        assert {f"{name}.png", f"{name}.svg"} <= figures
    answer = summary(in_study)
    assert [c.partition(":")[0] for c in answer["conclusions"]] == [
        "from scratch, 30 labels", "rotation, 30 labels", "simclr, 30 labels", "Best at 30 labels",
    ]  # fmt: skip
    assert (in_study / "gains.csv").is_file()
    pretrained = {p.name.split("_")[0]: summary(p) for p in Path("outputs/pretrain/study_runs").iterdir()}
    assert answer["pretraining_seconds"] == {n: s["wall_time_seconds"] for n, s in pretrained.items()}
    assert answer["seeds"] == {"training": 0, "split": 0, "subsets": 2, "pretraining": 1}
    assert (answer["pretext"], answer["backbone"], answer["resumable"]) == ("rotation, simclr", "smallcnn", "study")
    assert answer["images"] == pretrained["simclr"]["images"] == len(load_train(answer["config"]["dataset"])[0])
    assert answer["label_budgets"] == {"labels_per_class=3": {"labels": 30, "overlap": 0.1}}
    assert answer["config"]["validation"] == "inside"
    made = [summary(Path(r["finetuned"])) for r in rows]
    assert {s["data_fingerprint"] for s in made} == {answer["data_fingerprint"]}
    best = max(
        (r for r in rows if r["mode"] != "auto"), key=lambda r: (float(r["val_accuracy"]), -float(r["val_loss"]))
    )
    assert answer["best_classifier"] == best["finetuned"]
    assert {"choices", "pretraining_seconds", "data_fingerprint", "seeds", "command"} <= answer.keys()
    assert Path(answer["best_classifier"], "best.pt").is_file()


def test_accuracies_are_those_of_the_evaluations(in_study: Path) -> None:
    rows = study_table(in_study)
    for r in rows:
        predicted = np.load(Path(r["evaluated"]) / "predictions.npz")
        right = predicted["probabilities"].argmax(1) == predicted["labels"]
        assert float(r["test_accuracy"]) == pytest.approx(right.mean(), abs=0.006)  # they are kept with 11 bits


@pytest.mark.slow
def test_auto_of_a_study_is_the_choice_of_finetune(in_study: Path, cli: Cli) -> None:
    """The same candidates, scores and corrected accuracy."""
    (row,) = (
        r for r in study_table(in_study) if (r["initialization"], r["mode"], r["seed"]) == ("simclr", "auto", "1")
    )
    (run,) = Path("outputs/pretrain/study_runs").glob("simclr*")
    own = ("train.steps=4", "train.evaluations=1", "labels_per_class=3", "seed=1")
    answer = cli("finetune", f"init={run}", "mode=auto", *own, *QUICK)
    assert answer.code == 0, answer.err
    made = summary(runs("finetune")[-1])
    assert (made["chosen"], made["subset"]) == (row["chosen"], row["subset"])
    assert made["val/accuracy"] == pytest.approx(float(row["val_accuracy"]), abs=1e-6)
    rivals = {r["mode"]: summary(Path(r["finetuned"])) for r in study_table(in_study) if r["seed"] == "1"
              and r["initialization"] == "simclr"}  # fmt: skip
    scores = {m: rivals[m]["candidates"][m] for m in ("probe", "finetune")}
    assert {k: v for k, v in made["candidates"].items() if k in scores} == scores


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("inits=[simclrr]",), "no pretext 'simclrr'; did you mean simclr?"),
        (('inits=["simclr pretext.temprature=1"]',), "pretext.temprature"),
        (('inits=["simclr pretext.temperature=-1"]',), "pretext.temperature: must be greater than 0"),
        (("inits=[]",), "inits: must be a list of at least 1"),
        (("finetune.train.stepz=3",), "finetune.train.stepz: no such key; did you mean train.steps?"),
        (("finetune.label_smoothing=2",), "finetune.label_smoothing: must be at most 1"),
        (("label_fractions=[2.0]",), "label_fraction must be at most 1"),
        (("label_fractions=0.1",), "label_fractions: must be a list"),
        (("budget=soon",), "budget=soon: expected a time such as 90s, 30m or 2h"),
        (("budget=3s",), "one epoch of every pretraining"),
        (("mode=knn",), "mode: must be one of"),
        (("-m", "seeds=1,2"), "compare runs its own sweeps"),
        (('dataset.classes=["1"]',), "needs labeled images of at least two classes"),
        (('inits=["simclr backbone=resnet18"]',), "backbone=resnet18: cannot differ between the tasks of a study"),
        (('inits=["simclr train.epochs=3"]', "budget=9m"), "budget= sets the epochs of each pretraining"),
        (("finetune.backbone=resnet18",), "the study sets backbone itself"),
        (("finetune.dataset.image_size=8",), "the study sets dataset.image_size itself"),
        (("finetune.optimizer=sgd", "finetune.optimizer.betas=[0.9,0.9]"), "finetune.optimizer.betas: no such key"),
        (('inits=["simclr unlabeled=more"]',), "unlabeled=more: cannot differ between the tasks of a study"),
        (("imagenet=true",), "imagenet= is now inits=; give only that"),
        (("inits=[pretrained,rotatoin]",), "inits: rotatoin: no pretext 'rotatoin'; did you mean rotation?"),
        (('inits=["pretrained mode=probe"]',), "inits: pretrained mode=probe: pretrained has no settings of its own"),
        (
            ('inits=["rotation init=pretrained"]',),
            "inits: rotation init=pretrained: init=pretrained: there are no published weights of smallcnn",
        ),
        (
            ('inits=["rotation init=outputs"]',),
            "init=outputs: a task of a study starts from scratch, or from published",
        ),
        (("init=pretrained",), 'init=pretrained: give it to a task, as in inits=["rotation init=pretrained"]'),
        (("inits=[scratch]", "budget=2m"), "budget=2m sets the epochs of pretrainings, and inits= has none"),
        (("labels=[20]", "labels_per_class=[3]"), "set only one of labels, labels_per_class: a study has one kind"),
        (("labels=[20]", "label_fractions=[0.1]"), "set only one of labels, label_fractions: a study has one kind"),
        (("labels=[20,9]",), "labels=9 is fewer than the 10 classes"),
        (("labels=[301]",), "labels=301: there are only 300 labels for training"),
        (("labels=[0]",), "labels: must be"),
        (("labels=60",), "labels: must be a list"),
        (("validation=extra", "dataset.val_fraction=0"), "validation=extra needs validation images"),
        (("dataset.val_fraction=0.2",), "dataset.val_fraction is for validation=extra"),
        (("pretrain_seeds=0",), "pretrain_seeds: must be at least 1"),
        (('inits=["simclr seed=1"]', "pretrain_seeds=2"), "pretrain_seeds=2 sets the seeds of each pretraining"),
        (("finetune.validation=extra",), "the study sets validation itself"),
    ],
)
def test_mistakes(cli: Cli, overrides: tuple[str, ...], words: str) -> None:
    flags = [a for a in overrides if a.startswith("-")]
    study = (*SMALL_STUDY, "inits=[rotation]", "seeds=1")
    answer = cli("compare", *flags, *study, *(a for a in overrides if a not in flags))
    assert words in answer.err
    assert answer.code == 1
    assert "Traceback" not in answer.err
    assert not study_runs("pretrain")


def test_pixels_cannot_be_pretrained_in_a_study(cli: Cli) -> None:
    answer = cli("compare", "dataset=digits", "backbone=pixels", *QUICK)
    assert answer.code == 1
    assert "backbone=pixels has no weights to pretrain; a study has it as a baseline anyway" in answer.err


def test_a_study_with_another_way_of_counting_labels_is_not_resumed(in_study: Path, cli: Cli) -> None:
    for key, was in (("validation=extra", "inside"), ("labels=[30]", "None"), ("labels_per_class=[4]", "\\[3\\]")):
        wrong = cli("compare", f"resume={in_study}", key)
        assert wrong.code == 1
        assert re.search(f"{re.escape(key)}: the run was started with {was}; remove it, or start a new run", wrong.err)
    path = in_study / "summary.json"
    config = json.loads(path.read_text())
    for key in ("validation", "labels", "pretrain_seeds", "equal_time"):
        del config["config"][key]
    path.write_text(json.dumps(config))
    wrong = cli("compare", f"resume={in_study}")
    assert wrong.code == 1
    assert wrong.err == (
        f"sslrun: {in_study} was started by a version that did not count validation labels in the label budget, and "
        "cannot be resumed: start a new run\n"
    )


def run_of(stage_name: str, name: str, done: bool = False) -> StudyRun:
    run = StudyRun(stage_name, name, (), "0")
    if done:
        run.directory.mkdir(parents=True)
    return run


def test_an_earlier_study_with_the_same_settings_gives_the_number_of_epochs() -> None:
    def study(name: str, started: str, epochs: int | None, **config: Any) -> None:
        folder = Path("outputs/compare", name)
        folder.mkdir(parents=True)
        whole = {"train": {"epochs": epochs, "steps": None, "batch_size": 8}, "budget": "9m", "resume": name} | config
        known = {"stage": "compare", "status": "failed", "overrides": [], "wall_time_seconds": 1.0, "started": started}
        budget = {} if epochs is None else {"budget_epochs": epochs}
        (folder / "summary.json").write_text(json.dumps({**known, "config": whole, **budget}))

    config = {"train": {"epochs": 100, "steps": 7, "batch_size": 8}, "budget": "9m", "resume": None}
    run: Any = SimpleNamespace(config=config)

    def before(*done: int) -> int | None:
        def with_epochs(n: int) -> Any:
            runs = [StudyRun("pretrain", "none", (), "0"), StudyRun("pretrain", f"{n}", (), "0")]
            return SimpleNamespace(each_pretraining=runs)

        for n in done:
            run_of("pretrain", f"{n}", True)
        return compare._epochs_before(run, with_epochs)

    assert before() is None
    study("z", "2026-01-01", 3)
    study("y", "2026-01-02", 4)
    study("x", "2026-01-03", 5, budget="8m")
    study("w", "2026-01-04", 6, train={"epochs": 6, "steps": None, "batch_size": 16})
    study("v", "2026-01-05", None)
    assert before() is None
    assert before(3, 5, 6) == 3
    assert before(4) == 4  # the newest whose pretrainings exist


@pytest.mark.parametrize("earlier", [None, 7])
def test_a_budget_is_fitted_once(earlier: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def times_of(plan: Any, loaded: Any, new_epochs: bool = False) -> Any:
        seen.append((plan, loaded, new_epochs))
        return SimpleNamespace(epochs_within=lambda limit: int(limit / 20), describe=lambda plan: f"for {plan}")

    class Planned(str):
        matched = 0

    def plan_of(stages: Any, config: Any, *_: Any) -> str:
        return Planned(f"{config['train']['epochs']} {config['train']['steps']} {config['train']['batch_size']}")

    monkeypatch.setattr(compare, "times_of", times_of)
    monkeypatch.setattr(compare, "plan_of", plan_of)
    monkeypatch.setattr(compare, "_epochs_before", lambda run, with_epochs: earlier)
    train = {"epochs": 100, "steps": 9, "batch_size": 8}
    run = Run(Path("run"), "compare", OmegaConf.create({"train": train, "budget": "1m"}), {}, stages=Stages(stage, job))
    loaded: Any = "data"
    epochs = earlier or 3
    assert compare._planned(run, {}, None, loaded, None, train) == "100 9 8"
    assert "budget_epochs" not in run.summary
    assert compare._planned(run, {}, None, loaded, 60.0, train) == f"{epochs} None 8"
    assert run.summary["budget_epochs"] == epochs
    assert run.config["train"] == {"epochs": epochs, "steps": None, "batch_size": 8}
    assert compare._planned(run, {}, None, loaded, 60.0, run.config["train"]) == f"{epochs} None 8"
    first, fitted = ("100 9 8", "data"), (f"{epochs} None 8", "data")
    assert seen == [(*first, False), (*first, True), (*fitted, False), (*fitted, False)]
    run.close("finished")


def test_the_compared_network_and_the_teacher_are_noted_each(caplog: pytest.LogCaptureFixture) -> None:
    def network(name: str, size: int) -> Any:
        return SimpleNamespace(name=name, image_size=size, source=f"file of {name}", license="mit")

    noted: dict[str, Any] = {}
    run: Any = SimpleNamespace(note=noted.update)
    settings: Any = SimpleNamespace(
        backbone={"_target_": "sslrun.models.backbones.resnet18.resnet18"}, dataset={"image_size": 64}
    )
    given: Any = SimpleNamespace(network=network("resnet18", 224), teacher=network("lite0", 224))
    caplog.set_level("INFO")
    compare._note_network(run, given, settings)
    assert [r.getMessage() for r in caplog.records] == [
        "pretrained is resnet18 at 224 px (file of resnet18, license: mit); the others are resnet18 at 64 px.",
        "the teacher of distill is lite0 at 224 px (file of lite0, license: mit).",
    ]
    assert {k: v["network"] for k, v in noted.items()} == {
        "published": "resnet18 at 224 px", "teacher": "lite0 at 224 px"
    }  # fmt: skip


def test_the_runs_of_a_study_are_launched_in_order(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Training from scratch for as long as a pretraining comes after those of which it needs the times."""
    launched: list[tuple[list[str], str]] = []
    monkeypatch.setattr(
        compare, "launch_all", lambda runs, _, title="": launched.append(([r.name for r in runs], title))
    )
    monkeypatch.setattr(compare.results, "row_of", lambda *given: SimpleNamespace(initialization=given[1], given=given))
    monkeypatch.setattr(compare, "with_costs", lambda rows, device: rows)
    monkeypatch.setattr(compare, "with_auto", lambda rows, names: [("auto", len(rows), names)])
    monkeypatch.setattr(compare, "equal_time_steps", lambda pretrained, scratch: {"labels=9": len(pretrained) * 100})
    tuned, frozen = (Cell("scratch", m, LabelBudget(9)) for m in ("finetune", "probe"))
    own, longer = Cell("simclr", "probe", LabelBudget(9), 0), Cell("scratch", "equal_time", LabelBudget(9))
    pretrainings = {"simclr": {k: run_of("pretrain", f"p{k}") for k in range(2)}}
    runs = {c: run_of("finetune", f"c{i}") for i, c in enumerate((tuned, frozen, own, longer))}
    tests = {c: run_of("evaluate", f"e{i}") for i, c in enumerate(runs)}
    data = StudyData(None, None, "")  # type: ignore[arg-type]

    def planned(cells: list[Cell], matched: int) -> Plan:
        return Plan(data, pretrainings, {c: runs[c] for c in cells}, {c: tests[c] for c in cells}, matched)

    def with_equal_time(steps: dict[str, int]) -> Plan:
        assert steps == {"labels=9": 200}
        return planned(list(runs), 0)

    tests[tuned].directory.mkdir(parents=True)
    classes = [{"class": "cat", "images": 3, "recall_low": None}, {"class": "dog", "images": 30, "recall_low": None}]
    (tests[tuned].directory / "report.json").write_text(json.dumps({"classes": classes}))
    noted: dict[str, Any] = {}
    run: Any = SimpleNamespace(stages=None, note=noted.update)
    some = planned([tuned, frozen, own], 1)
    rows: Any = compare._evaluated(run, some, SimpleNamespace(mode="finetune", device={}), with_equal_time)  # type: ignore[arg-type]
    assert launched == [
        (["p0", "p1"], ""),
        (["c0", "c1", "c2"], ""),
        (["c0", "c1", "c2", "c3"], "equal time"),
        (["e0", "e1", "e2", "e3"], ""),
    ]
    assert [r.given for r in rows] == [(tests[c].directory, c.initialization, c.mode) for c in runs]
    assert noted == {"equal_time_steps": {"labels=9": 200}}
    assert caplog.text.count("3 test images of class cat: too few to measure its recall.") == 1  # not by each run
    launched.clear()
    without = planned([tuned, frozen, own], 0)
    rows = compare._evaluated(run, without, SimpleNamespace(mode="auto", device={}), with_equal_time)  # type: ignore[arg-type]
    assert rows[3:] == [("auto", 3, ["simclr"])]
    assert [title for _, title in launched] == ["", "", ""]


def test_maps_are_of_validation_images_unless_the_classifiers_have_other_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compare, "embedding_maps", lambda *given: given)
    settings: Any = SimpleNamespace(finetune=["label_smoothing=0.1"], backbone="b", dataset="d", device="cpu")
    pool = SimpleNamespace(train="all", data="training", val="validation")
    loaded: Any = SimpleNamespace(pool=pool)
    expected = ({"a": Path("x")}, "b", "d", "cpu", "all", "validation")
    assert compare._maps(settings, {"a": Path("x")}, loaded) == expected
    pool.val = None
    assert compare._maps(settings, {}, loaded)[-2:] == ("all", "training")  # type: ignore[index]
    settings.finetune.append("++dataset.classes=[a]")
    assert compare._maps(settings, {}, loaded) is None


def test_the_older_keys_of_a_study_are_read_when_it_is_resumed(in_study: Path, cli: Cli) -> None:
    again = cli("compare", "--cfg", "job", f"resume={in_study}", "pretexts=[rotation,simclr]", "imagenet=False")
    assert again.code == 0, again.err
    assert "pretexts= and imagenet= are now inits=; read as inits=[rotation,simclr]\n" in again.err
    other = cli("compare", f"resume={in_study}", "pretexts=[jigsaw]")
    assert other.code == 1
    assert "inits=[jigsaw]: the run was started with" in other.err


def test_a_study_that_was_started_without_a_key_of_today_is_not_resumed(in_study: Path, cli: Cli) -> None:
    path = in_study / "summary.json"
    old = json.loads(path.read_text())
    del old["config"]["init"]
    old["config"] |= {"pretexts": old["config"].pop("inits"), "imagenet": False}
    path.write_text(json.dumps(old))
    answer = cli("compare", f"resume={in_study}")
    assert answer.code == 1
    assert (
        answer.err
        == f"sslrun: {in_study} was started by a version without init, and cannot be resumed: start a new run\n"
    )
    assert json.loads(path.read_text()) == old
