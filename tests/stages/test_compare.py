"""`sslrun compare`."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from sslrun.data.dataset import load_train
from sslrun.data.labels import LabelBudget
from sslrun.runs.run import Run, Stages
from sslrun.stages import compare
from sslrun.stages.table import job, stage
from sslrun.study.launch import StudyRun
from sslrun.study.plan import Cell, Plan, StudyData
from tests.helpers import SMALL_STUDY, STUDY_RUNS, Cli, study_runs, study_table, summary


def test_a_study_has_all_networks_on_the_same_subsets_and_all_outputs(in_study: Path) -> None:
    assert len(study_runs("pretrain")) == 2
    assert len(study_runs("finetune")) == len(study_runs("evaluate")) == STUDY_RUNS
    rows = study_table(in_study)
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
    pretrained = {p.name.split("-")[0]: summary(p) for p in Path("outputs/pretrain/study_runs").iterdir()}
    assert answer["pretraining_seconds"] == {n: s["wall_time_seconds"] for n, s in pretrained.items()}
    assert answer["seeds"] == {"training": 0, "split": 0, "subsets": 2}
    assert (answer["pretext"], answer["backbone"], answer["resumable"]) == ("rotation, simclr", "smallcnn", "study")
    assert answer["images"] == pretrained["simclr"]["images"] == len(load_train(answer["config"]["dataset"])[0])
    made = [summary(Path(r["finetuned"])) for r in rows]
    assert {s["data_fingerprint"] for s in made} == {answer["data_fingerprint"]}
    best = max(
        (r for r in rows if r["mode"] != "auto"), key=lambda r: (float(r["val_accuracy"]), -float(r["val_loss"]))
    )
    assert answer["best_classifier"] == best["finetuned"]
    assert {"choices", "pretraining_seconds", "data_fingerprint", "seeds", "command"} <= answer.keys()
    assert Path(answer["best_classifier"], "best.pt").is_file()


def test_accuracies_are_those_of_the_evaluations_and_auto_uses_validation_only(in_study: Path) -> None:
    rows = study_table(in_study)
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
        (("budget=soon",), "budget=soon: expected a time such as 90s, 30m or 2h"),
        (("budget=3s",), "one epoch of every pretraining"),
        (("mode=knn",), "mode: must be one of"),
        (("-m", "seeds=1,2"), "compare runs its own sweeps"),
        (('dataset.classes=["1"]',), "needs labeled images of at least two classes"),
        (('pretexts=["simclr backbone=resnet18"]',), "backbone=resnet18: cannot differ between the tasks of a study"),
        (('pretexts=["simclr train.epochs=3"]', "budget=9m"), "budget= sets the epochs of each pretraining"),
        (("finetune.backbone=resnet18",), "the study sets backbone itself"),
        (("finetune.dataset.image_size=8",), "the study sets dataset.image_size itself"),
        (("finetune.optimizer=sgd", "finetune.optimizer.betas=[0.9,0.9]"), "finetune.optimizer.betas: no such key"),
        (('pretexts=["simclr unlabeled=more"]',), "unlabeled=more: cannot differ between the tasks of a study"),
        (("imagenet=true",), "imagenet=true: no ImageNet weights for this backbone"),
    ],
)
def test_mistakes(cli: Cli, overrides: tuple[str, ...], words: str) -> None:
    flags = [a for a in overrides if a.startswith("-")]
    study = (*SMALL_STUDY, "pretexts=[rotation]", "seeds=1")
    answer = cli("compare", *flags, *study, *(a for a in overrides if a not in flags))
    assert words in answer.err
    assert answer.code == 1
    assert "Traceback" not in answer.err
    assert not study_runs("pretrain")


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
            runs = {"a": StudyRun("pretrain", "none", (), "0"), "b": StudyRun("pretrain", f"{n}", (), "0")}
            return SimpleNamespace(pretrainings=runs)

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

    def plan_of(stages: Any, config: Any, *_: Any) -> str:
        return f"{config['train']['epochs']} {config['train']['steps']} {config['train']['batch_size']}"

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


def test_the_runs_of_a_study_are_launched_in_order_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[tuple[list[str], str]] = []
    judged: list[tuple[Any, ...]] = []

    def launch(runs: Sequence[StudyRun], stages: Any, title: str = "") -> None:
        launched.append(([r.name for r in runs], title))

    def row_of(*given: Any) -> Any:
        judged.append(given)
        return SimpleNamespace(initialization=given[1])

    cells = [
        Cell(i, "finetune", LabelBudget(0.1), s) for i, s in (("scratch", ""), ("simclr", "a=1"), ("simclr", "a=2"))
    ]
    classifiers = {c: run_of("finetune", f"c{i}") for i, c in enumerate(cells)}
    evaluations = {c: run_of("evaluate", f"e{i}") for i, c in enumerate(cells)}
    trials = {cells[1]: [classifiers[cells[0]], run_of("finetune", "t0"), run_of("finetune", "t1")]}
    data = StudyData(None, None, None, "")  # type: ignore[arg-type]
    plan = Plan(data, {"simclr": run_of("pretrain", "p")}, classifiers, evaluations, trials)
    monkeypatch.setattr(compare, "launch_all", launch)
    monkeypatch.setattr(compare, "best_settings", lambda plan: cells[:2])
    monkeypatch.setattr(compare, "mean_scores", lambda runs: {"val/accuracy": float(len(runs))})
    monkeypatch.setattr(compare.results, "row_of", row_of)
    monkeypatch.setattr(compare.results, "with_auto", lambda rows, names: [("auto", len(rows), names)])
    run: Any = SimpleNamespace(stages=None)
    assert len(compare._evaluated(run, plan, "finetune")) == 2
    assert launched == [
        (["p"], "pretrain"),
        (["c0", "c1", "c2"], "finetune"),
        (["t0", "t1"], "fold"),
        (["e0", "e1"], ""),
    ]
    assert judged == [
        (evaluations[cells[0]].directory, "scratch", None, ""),
        (evaluations[cells[1]].directory, "simclr", {"val/accuracy": 3.0}, "a=1"),
    ]
    assert compare._evaluated(run, plan, "auto")[2:] == [("auto", 2, ["simclr"])]


def test_maps_are_of_validation_images_unless_the_classifiers_have_other_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compare, "embedding_maps", lambda *given: given)
    settings: Any = SimpleNamespace(finetune=["label_smoothing=0.1"], backbone="b", dataset="d", device="cpu")
    loaded: Any = SimpleNamespace(data="train", val="validation")
    assert compare._maps(settings, {"a": Path("x")}, loaded) == (
        {"a": Path("x")},
        "b",
        "d",
        "cpu",
        "train",
        "validation",
    )
    loaded.val = None
    assert compare._maps(settings, {}, loaded)[-2:] == ("train", "train")  # type: ignore[index]
    settings.finetune.append("++dataset.classes=[a]")
    assert compare._maps(settings, {}, loaded) is None
