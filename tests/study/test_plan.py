import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sslrun.base.output import write_json
from sslrun.data.dataset import Dataset
from sslrun.data.images import Images
from sslrun.data.labels import LabelBudget
from sslrun.study import plan
from sslrun.study.launch import StudyRun
from sslrun.study.plan import Cell, Plan, StudyData, best_settings
from tests.helpers import SMALL_STUDY, Cli, runs, study_runs, study_table, summary


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
