import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sslrun.base.errors import UserError
from sslrun.base.output import write_json
from sslrun.data.dataset import Dataset
from sslrun.data.images import Images
from sslrun.data.labeled import Labeled, Pool
from sslrun.data.labels import LabelBudget
from sslrun.models.published import Published
from sslrun.study import budget
from sslrun.study.budget import Times, times_of
from sslrun.study.launch import StudyRun
from sslrun.study.plan import Cell, Plan, StudyData
from sslrun.training.settings import FORWARD_COST
from tests.helpers import SMALL_STUDY, Cli, runs, summary


@pytest.mark.slow
def test_a_budget_sets_the_epochs_and_is_logged_before_the_start(cli: Cli) -> None:
    quick = ("labels_per_class=[2]", "seeds=1", "mode=probe", "budget=40s")
    answer = cli("compare", *(s for s in SMALL_STUDY if not s.startswith("train.steps")), *quick)
    assert answer.code == 0, answer.err
    epochs = summary(runs("compare")[0])["config"]["train"]["epochs"]
    assert epochs >= 1
    assert f"budget=40s allows {epochs} epoch" in answer.err
    assert answer.err.index("about") < answer.err.index("pretrain 1/1")
    (pretrained,) = Path("outputs/pretrain/study_runs").glob("*/summary.json")
    assert json.loads(pretrained.read_text())["config"]["train"]["epochs"] == epochs
    again = cli("compare", *(s for s in SMALL_STUDY if not s.startswith("train.steps")), *quick)
    assert again.code == 0, again.err
    assert "the same study in outputs/compare/" in again.err
    assert "All runs of this study are finished." in again.err


def test_a_budget_that_is_too_small_names_the_smallest_one() -> None:
    times = Times(classifiers=100.0, epoch={"rotation": 20.0, "simclr": 30.0}, left={"rotation": 1, "simclr": 1})
    with pytest.raises(UserError, match="set budget=3m or more"):
        times.epochs_within(149.0)
    assert times.epochs_within(180.0) == 1  # which is 3m


def test_a_budget_counts_every_pretraining_and_training_from_scratch_for_as_long() -> None:
    """100 s of classifiers; an epoch is 3 x 20 + 2 x 30 s of pretraining and 4 x 25 s from scratch."""
    times = Times(100.0, {"rotation": 20.0, "simclr": 30.0}, {}, {"rotation": 3, "simclr": 2}, matched=4)
    assert times.epochs_within(100 + 3 * 220.0) == 3
    assert times.epochs_within(100 + 3 * 220.0 - 1) == 2
    with pytest.raises(
        UserError, match=r"from scratch for as long \(equal_time\) 4 min; .* or lower seeds, equal_time,"
    ):
        times.epochs_within(319.0)


def run_of(stage: str, name: str, done: bool = False, *overrides: str) -> StudyRun:
    """Return a run of a study, which exists if it is done."""
    run = StudyRun(stage, name, overrides, "0")
    if done:
        known = {"stage": stage, "status": "finished", "config": {"seed": 0}, "overrides": [], "val/accuracy": 0.5}
        run.directory.mkdir(parents=True)
        write_json(run.directory / "summary.json", {**known, "val/loss": 1.0, "wall_time_seconds": 1.0})
        (run.directory / "last.pt").touch()
    return run


def images(n: int) -> Images:
    return Images([torch.zeros(n, 2, 2, 3, dtype=torch.uint8)], np.zeros((n, 16), np.uint8))


def dataset(n: int) -> Dataset:
    return Dataset(images(n), torch.arange(n) % 2, ["a", "b"], [str(i) for i in range(n)])


def study_plan(done: bool) -> Plan:
    a, b = (Cell("simclr", mode, LabelBudget(fraction=0.1), 0) for mode in ("probe", "finetune"))
    pretrainings = {
        n: {k: run_of("pretrain", f"{n}{k}{done}", done or n == "rotation") for k in range(2)}
        for n in ("rotation", "simclr")
    }
    classifiers = {c: run_of("finetune", f"{c.mode}{done}", done or c is a) for c in (a, b)}
    evaluations = {c: run_of("evaluate", f"{c.mode}{done}", done and c is a) for c in (a, b)}
    return Plan(StudyData(None, None, ""), pretrainings, classifiers, evaluations)  # type: ignore[arg-type]


def test_the_estimate_names_only_the_runs_that_are_left() -> None:
    times = Times(90.0, {"rotation": 1000.0, "simclr": 60.0}, {"rotation": 7.0, "simclr": 2.5})
    some = study_plan(False)
    assert times.describe(some) == (
        "To run: 2 pretrainings (simclr 2.5 epochs, 2 min each) and 1 classifier (90 s); about 5 min to 8 min in total "
        "if run sequentially."
    )
    longer = replace(some, matched=3)
    assert " and 3 trainings from scratch for as long as a pretraining (3.0 h); about 2.5 h to 3.9 h" in times.describe(
        longer
    )
    finished = study_plan(True)
    assert times.describe(finished) == "To run: evaluations."
    for run in finished.evaluations.values():
        if not run.finished():
            run_of("evaluate", run.name, True)
    assert times.describe(finished) == "All runs of this study are finished."


@pytest.mark.parametrize("new_epochs", [False, True])
def test_times_are_measured_once_per_label_budget(monkeypatch: pytest.MonkeyPatch, new_epochs: bool) -> None:
    """10 images per second in pretraining; a probe takes 1 s a label, finetuning 100 s a step and 1000 s a setting."""
    measured: list[tuple[int, int]] = []

    def pretraining(all_images: Images, *nodes: Any) -> SimpleNamespace:
        assert len(all_images) == 50
        assert nodes[-2:] == (16, 16)  # image size and batch size
        return SimpleNamespace(images_per_second=10.0, preparation=0.0)

    def classifier(config: Any, labeled: Labeled) -> SimpleNamespace:
        n = len(labeled.budget)
        measured.append((n, len(labeled.pool)))
        finetuning = lambda training, steps, settings: 100.0 * steps + 1000 * settings  # noqa: E731
        return SimpleNamespace(probe=float(n), labels=n, finetuning=finetuning)

    monkeypatch.setattr(budget.estimate, "pretraining", pretraining)
    monkeypatch.setattr(budget.estimate, "classifier", classifier)
    shared = ("dataset=digits", "dataset.image_size=16", "backbone=smallcnn")
    capped = ("dataset.max_images=20", "train.epochs=3", "train.steps=null")
    lengths = {"rotation": capped, "simclr": ("train.steps=2", "train.epochs=null")}
    pretrainings = {
        n: {
            k: run_of(
                "pretrain", f"{n}{k}", n == "simclr" or k == 0, *shared, f"pretext={n}", "train.batch_size=16", *more
            )
            for k in range(2)
        }
        for n, more in lengths.items()
    }
    few, many = LabelBudget(per_class=2), LabelBudget(per_class=5)
    tuned, probe = (*shared, "init=scratch", "mode=finetune", "train.steps=3"), (*shared, "init=scratch", "mode=probe")
    search = 'search=["augment.probability=0","augment.probability=1"]'
    classifiers = {
        Cell("simclr", "probe", few, 0): run_of("finetune", "a", False, *probe),
        Cell("simclr", "finetune", few, 0): run_of("finetune", "b", False, *tuned),
        Cell("simclr", "finetune", few, 1): run_of("finetune", "c", False, *tuned, search),
        Cell("simclr", "probe", many, 0): run_of("finetune", "d", True, *probe),
        Cell("scratch", "finetune", many): run_of("finetune", "e", True, *tuned),
        Cell("pixels", "knn", few): run_of("finetune", "f", False, *probe),
    }
    data = dataset(40)
    plan = Plan(StudyData(Pool(data, data, None, "inside", "photos"), images(40), ""), pretrainings, classifiers, {})
    times = times_of(plan, StudyData(plan.classified.pool, images(50), ""), new_epochs)
    assert times.epoch == {"rotation": 2.0, "simclr": 5.0}
    assert times.epochs == {"rotation": pytest.approx(3.0, rel=0.3), "simclr": pytest.approx(2 * 16 / 50)}
    assert times.left == ({"rotation": 2, "simclr": 2} if new_epochs else {"rotation": 1, "simclr": 0})
    assert times.classifiers == 4 + 300 + 2300 + 2.5 + (10 if new_epochs else 0)
    assert measured == [(4, 40), (10, 40)][: 1 + new_epochs]


@pytest.mark.parametrize("mode", ["probe", "finetune"])
def test_published_weights_need_a_pass_over_labeled_and_test_images(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """An image takes 10 ms, in training with its backward pass several times as long, in each fold and finally."""
    sizes: list[int] = []

    def milliseconds(classifier: Any, image_size: int, device: Any) -> float:
        sizes.append(image_size)
        return 10.0

    monkeypatch.setattr(budget, "milliseconds", milliseconds)
    node = {"_target_": "sslrun.models.backbones.smallcnn.smallcnn", "widths": [4]}
    network = Published(node, 40, [0.5] * 3, [0.5] * 3, "", "", None)
    overrides = (
        "dataset=digits",
        "backbone=smallcnn",
        "init=pretrained",
        f"mode={mode}",
        "train.steps=7",
        "device=cpu",
    )
    cells = [Cell("pretrained", mode, LabelBudget(total=9, seed=s)) for s in range(2)]
    classifiers = {c: run_of("finetune", f"{mode}{c.budget.seed}", False, *overrides) for c in cells}
    data = dataset(40)
    of_study = StudyData(Pool(data, data, None, "inside", "photos"), images(40), "", 70)
    times = times_of(Plan(of_study, {}, classifiers, {}, network=network), of_study)
    assert sizes == [40]  # once
    each = 2.5 + 0.01 * (9 + 70) + ((1 + 3) * 7 * 9 * 0.01 / FORWARD_COST if mode == "finetune" else 0.0)
    assert times.classifiers == pytest.approx(2 * each)
