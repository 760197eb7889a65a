import json
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
from sslrun.data.labels import LabelBudget
from sslrun.study import budget
from sslrun.study.budget import Times, times_of
from sslrun.study.launch import StudyRun
from sslrun.study.plan import Cell, Plan, StudyData
from tests.helpers import SMALL_STUDY, Cli, runs, summary


@pytest.mark.slow
def test_a_budget_sets_the_epochs_and_is_logged_before_the_start(cli: Cli) -> None:
    quick = ("labels_per_class=[2]", "seeds=1", "mode=probe", "budget=20s")
    answer = cli("compare", *(s for s in SMALL_STUDY if not s.startswith("train.steps")), *quick)
    assert answer.code == 0, answer.err
    epochs = summary(runs("compare")[0])["config"]["train"]["epochs"]
    assert epochs >= 1
    assert f"budget=20s allows {epochs} epoch" in answer.err
    assert answer.err.index("about") < answer.err.index("pretrain 1/1")
    (pretrained,) = Path("outputs/pretrain/study_runs").glob("*/summary.json")
    assert json.loads(pretrained.read_text())["config"]["train"]["epochs"] == epochs
    again = cli("compare", *(s for s in SMALL_STUDY if not s.startswith("train.steps")), *quick)
    assert again.code == 0, again.err
    assert "the same study in outputs/compare/" in again.err
    assert "All runs of this study are finished." in again.err


def test_a_budget_that_is_too_small_names_the_smallest_one() -> None:
    times = Times(classifiers=100.0, epoch={"rotation": 20.0, "simclr": 30.0}, epochs={})
    with pytest.raises(UserError, match="set budget=3m or more"):
        times.epochs_within(149.0)
    assert times.epochs_within(180.0) == 1  # which is 3m


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


def test_the_estimate_names_only_the_runs_that_are_left() -> None:
    def plan(done: bool) -> Plan:
        a, b = (Cell("simclr", mode, LabelBudget(0.1)) for mode in ("probe", "finetune"))
        pretrainings = {n: run_of("pretrain", f"{n}{done}", done or n == "rotation") for n in ("rotation", "simclr")}
        classifiers = {c: run_of("finetune", f"{c.mode}{done}", done or c is a) for c in (a, b)}
        trials = {b: [run_of("finetune", f"fold{k}{done}", done or k == 1) for k in range(3)]}
        evaluations = {c: run_of("evaluate", f"{c.mode}{done}", done and c is a) for c in (a, b)}
        return Plan(StudyData(None, None, None, ""), pretrainings, classifiers, evaluations, trials)  # type: ignore[arg-type]

    times = Times(90.0, {"rotation": 1000.0, "simclr": 60.0}, {"rotation": 7.0, "simclr": 2.5})
    assert times.describe(plan(False)) == (
        "To run: 1 pretraining (simclr 2.5 epochs, 2 min) and 3 classifiers (90 s); about 4 min in total if run "
        "sequentially."
    )
    finished = plan(True)
    assert times.describe(finished) == "To run: evaluations."
    for run in finished.evaluations.values():
        if not run.finished():
            run_of("evaluate", run.name, True)
    assert times.describe(finished) == "All runs of this study are finished."


@pytest.mark.parametrize("new_epochs", [False, True])
def test_times_are_measured_once_per_label_budget(monkeypatch: pytest.MonkeyPatch, new_epochs: bool) -> None:
    """10 images per second in pretraining; a probe takes 1 s a label, finetuning 100 s a step and 1 s a val. image."""
    measured: list[tuple[int, int, int]] = []

    def pretraining(all_images: Images, *nodes: Any) -> SimpleNamespace:
        assert len(all_images) == 50
        assert nodes[-2:] == (16, 16)  # image size and batch size
        return SimpleNamespace(images_per_second=10.0)

    def classifier(config: Any, data: Dataset, val: Dataset, n: int) -> SimpleNamespace:
        measured.append((n, len(data), len(val)))
        finetuning = lambda training, labels, validation: 100.0 * training.steps + 1000 * (labels - n) + validation  # noqa: E731
        return SimpleNamespace(probe=float(n), finetuning=finetuning)

    monkeypatch.setattr(budget.estimate, "pretraining", pretraining)
    monkeypatch.setattr(budget.estimate, "classifier", classifier)
    shared = ("dataset=digits", "dataset.image_size=16", "backbone=smallcnn")
    capped = ("dataset.max_images=20", "train.epochs=3", "train.steps=null")
    lengths = {"rotation": capped, "simclr": ("train.steps=2", "train.epochs=null")}
    pretrainings = {
        n: run_of("pretrain", n, n == "simclr", *shared, f"pretext={n}", "train.batch_size=16", *more)
        for n, more in lengths.items()
    }
    few, many = LabelBudget(per_class=2), LabelBudget(per_class=5)
    usual = ("init=scratch", *shared, "train.steps=3")
    classifiers = {
        Cell("simclr", "probe", few): run_of("finetune", "a", False, *usual),
        Cell("simclr", "finetune", few): run_of("finetune", "b", False, *usual),
        Cell("simclr", "finetune", few, "train.steps=5"): run_of("finetune", "c", False, *usual, "train.steps=5"),
        Cell("simclr", "probe", many): run_of("finetune", "d", True, *usual),
        Cell("scratch", "finetune", many): run_of("finetune", "e", True, *usual),
    }
    trials = {Cell("simclr", "probe", few): [run_of("finetune", f"fold{k}", k == 0, *usual) for k in range(2)]}
    plan = Plan(StudyData(dataset(40), dataset(8), images(40), ""), pretrainings, classifiers, {}, trials)
    times = times_of(plan, StudyData(dataset(30), None, images(50), ""), new_epochs)
    assert times.epoch == {"rotation": 2.0, "simclr": 5.0}
    assert times.epochs == {"rotation": 3.0, "simclr": 0.5}
    unfinished = 4 + 308 + 508 + 4
    assert times.classifiers == unfinished + (10 + 4 if new_epochs else 0)
    assert measured == [(4, 40, 8), (10, 40, 8)][: 1 + new_epochs]
