import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslrun.base.errors import UserError
from sslrun.base.output import write_json
from sslrun.config.compose import compose_config
from sslrun.config.nodes import plain
from sslrun.config.types import Node
from sslrun.data.dataset import Dataset, listing_hash
from sslrun.data.images import Images
from sslrun.data.labels import LabelBudget
from sslrun.runs.run import Stages
from sslrun.stages.table import job, stage
from sslrun.study import plan
from sslrun.study.launch import StudyRun
from sslrun.study.plan import Cell, Plan, StudyData, best_settings, load_data, plan_of
from tests.helpers import SMALL_STUDY, Cli, folder_node, runs, study_runs, study_table, summary


@pytest.mark.slow
def test_duplicates_run_once_and_lost_weights_are_trained_again(cli: Cli) -> None:
    twice = ('pretexts=[rotation,"rotation  train.steps=4"]', "label_fractions=[0.01,0.02]", "mode=finetune", "seeds=1")
    answer = cli("compare", *SMALL_STUDY, *twice)
    assert answer.code == 0, answer.err
    assert "Label budgets 0.01 and 0.02 both give 10 labels; only the first is used." in answer.err
    assert "rotation  train.steps=4 is the same as rotation, so it is run only once." in answer.err
    assert (len(study_runs("pretrain")), len(study_runs("finetune"))) == (1, 3)
    (study,) = runs("compare")
    assert len(study_table(study)) == 3
    own = cli("report", str(study))  # without auto, since there is no pretrained probe
    assert own.code == 0, own.err
    assert "auto" not in own.out + own.err
    (weights,) = {p.parent for p in Path("outputs/pretrain/study_runs").glob("*/*.pt")}
    before = (weights / "summary.json").read_text()
    for path in weights.glob("*.pt"):
        path.unlink()
    again = cli("compare", *SMALL_STUDY, *twice[:-1], "seeds=2")
    assert again.code == 0, again.err
    assert (len(study_runs("pretrain")), len(study_runs("finetune"))) == (1, 6)
    assert json.loads(before)["data_fingerprint"] == summary(weights)["data_fingerprint"]
    damaged = Path("outputs/finetune/study_runs", min(study_runs("finetune")))
    (damaged / "summary.json").write_text("{")
    wrong = cli("compare", *SMALL_STUDY, *twice)
    assert wrong.code == 1
    assert f"move {damaged} away to repeat the run" in wrong.err
    (study / "results.csv").write_text("begin,mode\n1,2\n")
    for path, text in ((study, "is not a table of results"), (runs("compare")[-1], "is an unfinished study")):
        wrong = cli("report", str(path))
        assert wrong.code == 1
        assert text in wrong.err
        assert "Traceback" not in wrong.err


def finished(name: str, accuracy: float) -> StudyRun:
    """Return a run of a study that there is, with this accuracy on validation."""
    run = StudyRun("finetune", name, (), "0")
    run.directory.mkdir(parents=True)
    summary = {"stage": "finetune", "status": "finished", "config": {"seed": 0}, "overrides": [],
               "wall_time_seconds": 1.0, "val/accuracy": accuracy, "val/loss": 1.0}  # fmt: skip
    write_json(run.directory / "summary.json", summary)
    return run


@pytest.mark.parametrize("folds", [True, False])
def test_a_search_chooses_by_cross_validation_and_without_it_by_validation(folds: bool) -> None:
    slow, fast = (Cell("simclr", "finetune", LabelBudget(0.1), f"train.learning_rate={r}") for r in (0.001, 0.1))
    classifiers = {slow: finished("slow", 0.6), fast: finished("fast", 0.7)}
    trials = {
        slow: [finished("slow_without0", 0.9), finished("slow_without1", 0.7)],
        fast: [finished("fast_without0", 0.5), finished("fast_without1", 0.8)],
    }
    data = StudyData(None, None, None, "")  # type: ignore[arg-type]
    plan = Plan(data, {}, classifiers, {}, trials if folds else {})
    assert best_settings(plan) == [slow if folds else fast]


@pytest.mark.parametrize(("per_class", "folds"), [(1, 0), (2, 2), (3, 3), (6, 3)])
def test_the_number_of_folds_follows_the_label_budget(per_class: int, folds: int) -> None:
    """The training split has 40 images a class, validation has 20."""
    data = Dataset(Images([torch.zeros(80, 2, 2, 3, dtype=torch.uint8)], np.zeros((80, 16), np.uint8)),
                   torch.arange(80) % 2, ["a", "b"], [str(i) for i in range(80)], {0: 40, 1: 40})  # fmt: skip
    cell = Cell("simclr", "finetune", LabelBudget(per_class=per_class))
    found = plan._folds(cell, StudyData(data, data.take(np.arange(20)), data.images, ""), 1, "auto")
    assert found == [[k, folds] for k in range(folds)]


def composed(command: str, overrides: Sequence[str]) -> Node:
    return plain(compose_config(command, list(overrides), None))


def with_labels(n: int, value: int = 0) -> Dataset:
    pixels = torch.full((n, 2, 2, 3), value, dtype=torch.uint8)
    return Dataset(Images([pixels], np.full((n, 16), value, np.uint8)), torch.arange(n) % 2, ["a", "b"], [""] * n)


def test_the_runs_of_a_study_have_its_settings_and_depend_on_the_data_that_they_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: dict[str, dict[str, tuple[Node, tuple[str, ...]]]] = {s: {} for s in ("pretrain", "finetune", "evaluate")}

    def named(
        stages: Any, stage: str, name: str, config: Node, overrides: Any, *data: str, setting: str = ""
    ) -> StudyRun:
        made[stage][f"{name} {setting}".strip()] = config, data
        return StudyRun(stage, name, tuple(overrides), f"{len(made[stage])}" if stage != "pretrain" else "0", setting)

    monkeypatch.setattr(plan, "study_run", named)
    common = ["dataset=folder", "dataset.root=photos", "backbone=smallcnn", "device=cpu"]
    monkeypatch.setattr(
        plan, "overrides_of", lambda *_: ({"rotation": common, "again": common}, common, ["", "label_smoothing=0.3"])
    )
    own = ["search=[]", "labels_per_class=[2]", "seeds=2", "imagenet=false", "mode=finetune", "device.threads=1"]
    config = composed("compare", [*common, *own])
    data, val = with_labels(20), with_labels(6, 9)
    images = data.images + with_labels(3, 7).images
    made_plan = plan_of(Stages(stage, job), config, {"device": "cpu"}, StudyData(data, val, images, "test"))
    assert [d for _, d in made["pretrain"].values()] == [(images.fingerprint().hexdigest(),)] * 2
    assert list(made_plan.pretrainings) == ["rotation"]  # the other one has the same key
    weights = made_plan.pretrainings["rotation"].directory.as_posix()
    inits = {"scratch": "scratch", "rotation": weights}
    cells = list(made_plan.classifiers)
    tried = ["scratch probe", *["scratch finetune"] * 2, *["rotation finetune"] * 2]
    assert [f"{c.initialization} {c.mode}" for c in cells] == tried * 2
    assert [c.budget for c in cells] == [LabelBudget(per_class=2)] * 5 + [LabelBudget(per_class=2, seed=1)] * 5
    whole = {
        "": composed("finetune", common),
        "label_smoothing=0.3": composed("finetune", [*common, "label_smoothing=0.3"]),
    }
    for cell, run in made_plan.classifiers.items():
        seed = cell.budget.seed
        assert run.name == f"{cell.initialization}_{cell.mode}_2_per_class_seed{seed}"
        settings = {"init": inits[cell.initialization], "mode": cell.mode, "labels_per_class": 2, "seed": seed}
        settings["subset_seed"] = seed
        trials = made_plan.trials.get(cell, [])
        assert len(trials) == (0 if (cell.initialization, cell.mode) == ("scratch", "probe") else 2)
        for fold, r in [(None, run), *(([k, 2], t) for k, t in enumerate(trials))]:
            used, fingerprints = made["finetune"][f"{r.name} {r.setting}".strip()]
            assert used == whole[cell.setting] | settings | {"fold": fold}
            assert fingerprints == (data.fingerprint(), val.fingerprint())
            written = {k: str(v) for k, v in settings.items() if k != "subset_seed"}
            assert {f"{k}={v}" for k, v in written.items()} <= {o.replace("'", "") for o in r.overrides}
            assert (f"fold={fold}".replace(" ", "") in r.overrides) == (fold is not None)
            assert r.setting == cell.setting
            assert r.overrides[: len(common)] == tuple(common)
            assert r.overrides.count("label_smoothing=0.3") == (cell.setting != "")
            assert not fold or r.name == f"{run.name}_fold{fold[0] + 1}of2"
        reading = {o.replace("'", "") for o in made_plan.evaluations[cell].overrides}
        place = {"dataset.root=photos", "dataset.test_fraction=0.2"}
        assert reading == {f"run={run.directory.as_posix()}", "device=cpu", "device.threads=1", *place}
    evaluated = list(made_plan.evaluations.values())
    assert {r.stage for r in evaluated} == {"evaluate"}
    assert {d for _, d in made["evaluate"].values()} == {("test",)}
    runs = {r.directory.as_posix() for r in made_plan.classifiers.values()}
    assert {c["run"] for c, _ in made["evaluate"].values()} <= runs
    assert all(c["device"] == config["device"] for c, _ in made["evaluate"].values())


def test_the_classifiers_of_each_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"weights": True, "cached": False}
    monkeypatch.setattr(
        plan, "imagenet_weights", lambda backbone, size: there["weights"] and (backbone, size) == ({}, 64)
    )
    monkeypatch.setattr(
        plan, "imagenet_cached", lambda backbone, size: there["cached"] and (backbone, size) == ({}, 64)
    )

    def cells(mode: str = "auto", imagenet: bool | str = False, seeds: int = 1) -> list[tuple[str, str, str]]:
        config = {"backbone": {}, "dataset": {"image_size": 64}, "imagenet": imagenet, "mode": mode, "seeds": seeds}
        found = plan._cells(config, ["simclr"], ["", "a=1"], [LabelBudget(0.1)])
        return [(c.initialization, c.mode, c.setting) for c in found]

    frozen, scratch = ("scratch", "probe", ""), [("scratch", "finetune", s) for s in ("", "a=1")]
    tuned, probe = [("simclr", "finetune", s) for s in ("", "a=1")], ("simclr", "probe", "")
    assert cells() == [frozen, *scratch, *tuned, probe]
    assert cells("finetune") == [frozen, *scratch, *tuned]
    assert cells("probe") == [frozen, *scratch, probe]
    assert len(cells(seeds=3)) == 3 * len(cells())
    assert cells(imagenet="auto") == cells()
    assert cells("probe", True) == [frozen, *scratch, ("imagenet", "probe", ""), probe]
    there["cached"] = True
    assert cells("probe", "auto") == cells("probe", True)
    there["weights"] = False
    with pytest.raises(UserError, match="imagenet=true: no ImageNet weights"):
        cells(imagenet=True)


def test_label_budgets_are_sorted_and_those_of_the_same_size_are_used_once() -> None:
    data = with_labels(20)
    config: Node = {"labels_per_class": None, "label_fractions": [1.0, 0.5, 0.1, 0.5, 0.11]}
    assert plan._budgets(config, data) == [LabelBudget(0.1), LabelBudget(0.5), LabelBudget(1.0)]
    config["labels_per_class"] = [10, 2, 2]
    assert plan._budgets(config, data) == [LabelBudget(per_class=2), LabelBudget(per_class=10)]


def test_without_validation_a_choice_needs_two_labels_per_class() -> None:
    data = with_labels(20)

    def folds(initialization: str, mode: str, settings: int, study: str, val: Dataset | None, n: int = 2) -> int:
        cell = Cell(initialization, mode, LabelBudget(per_class=n))
        return len(plan._folds(cell, StudyData(data, val, data.images, ""), settings, study))

    few, many = with_labels(20), with_labels(100)
    assert folds("simclr", "probe", 1, "auto", few) == folds("scratch", "finetune", 1, "auto", None) == 2
    assert folds("simclr", "probe", 2, "finetune", few) == folds("simclr", "finetune", 2, "probe", None) == 2
    assert folds("simclr", "finetune", 1, "finetune", few) == folds("simclr", "probe", 1, "probe", None, 1) == 0
    assert folds("scratch", "probe", 2, "auto", few) == folds("simclr", "probe", 2, "auto", many) == 0
    assert folds("simclr", "probe", 2, "auto", few, 1) == 0
    with pytest.raises(UserError, match="without validation images and with labels_per_class=1; set mode=finetune"):
        folds("simclr", "probe", 1, "auto", None, 1)


def test_the_best_setting_of_each_network_is_evaluated() -> None:
    """Label budgets, seeds and modes are networks of their own."""
    budgets = [LabelBudget(0.1), LabelBudget(0.1, seed=1), LabelBudget(0.2)]
    scores = {"a=1": (0.6, 0.7, 0.5), "a=2": (0.7, 0.6, 0.5)}
    runs = {
        Cell("simclr", "finetune", b, s): finished(f"{s}{i}", a[i])
        for s, a in scores.items()
        for i, b in enumerate(budgets)
    }
    probe = Cell("simclr", "probe", budgets[0])
    data = StudyData(None, None, None, "")  # type: ignore[arg-type]
    best = best_settings(Plan(data, {}, {**runs, probe: finished("probe", 0.1)}, {}, {}))
    tuned = [Cell("simclr", "finetune", b, s) for b, s in zip(budgets, ("a=2", "a=1", "a=1"), strict=True)]
    assert best == [*tuned, probe]


def test_a_study_pretrains_on_training_and_unlabeled_images_and_needs_a_test_split(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = {**folder_node("set"), "val_fraction": 0.2}
    shutil.copytree(photos, "set/train")
    shutil.copytree(photos, "set/test")
    shutil.copytree(photos / "temple", "set/unlabeled")
    Path("set/test/flower/flower 00.jpg").unlink()
    loaded = load_data(node, str(photos / "flower"))
    assert loaded.val is not None
    assert (len(loaded.data), len(loaded.val), len(loaded.images)) == (48, 12, 48 + 30 + 30)
    assert loaded.test == listing_hash(node, "test") != listing_hash(node, "train")
    fewer = plan._classified(node | {"max_images": 30}, node, loaded)
    assert fewer.val is not None
    assert (len(fewer.data), len(fewer.val), len(fewer.images), fewer.test) == (24, 6, 108, loaded.test)
    monkeypatch.setattr(plan, "listing_hash", lambda *_: "")
    with pytest.raises(UserError, match="has no test split, which a study needs"):
        load_data(node, None)
