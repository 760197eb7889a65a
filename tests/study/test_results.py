"""Verdicts by simulation, and the choice on validation alone."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sslrun.evaluation.intervals import paired
from sslrun.report.study import conclusions, verdict_text
from sslrun.study import results
from sslrun.study.results import Row, labels_needed, row_of, rows_of, verdict
from tests.helpers import named_values, row


@pytest.mark.parametrize("seeds", [3, 5])
def test_an_arm_that_equals_scratch_shows_no_difference_in_95_of_100_trials(seeds: int) -> None:
    rng = np.random.default_rng(0)
    answer = []
    for _ in range(2000):
        subset = rng.normal(0, 0.05, seeds)  # that it is a good or a bad one is common to both
        a, b = 0.7 + subset + rng.normal(0, 0.01, (2, seeds))
        answer.append(verdict_text(verdict(paired(dict(named_values(a)), dict(named_values(b))))))
    none = answer.count("no difference shown") / len(answer)
    assert abs(none - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 2000)
    assert sum(s.startswith("helps") for s in answer) == pytest.approx(
        sum(s.startswith("hurts") for s in answer), abs=45
    )


def test_a_true_gain_is_found_because_it_is_paired() -> None:
    rng = np.random.default_rng(1)
    result = unpaired = 0
    for _ in range(200):
        subset = rng.normal(0, 0.05, 5)
        a, b = 0.75 + subset + rng.normal(0, 0.01, 5), 0.7 + subset + rng.normal(0, 0.01, 5)
        answer = verdict_text(verdict(paired(dict(named_values(a)), dict(named_values(b)))))
        result += answer.startswith("helps by")
        unpaired += stats.ttest_ind(a, b).pvalue < 0.05
    assert result > 195
    assert unpaired < 120


def test_labels_needed_reads_the_curve_both_ways() -> None:
    curve = [(1000, 0.9), (10, 0.5), (100, 0.7)]
    for n, accuracy in curve:
        assert labels_needed(curve, accuracy) == (pytest.approx(n), "=")
    assert labels_needed(curve, 0.6) == (pytest.approx(math.sqrt(10 * 100)), "=")
    assert labels_needed(curve, 0.95) == (1000, ">")
    assert labels_needed(curve, 0.4) == (10, "<")
    assert labels_needed([(10, 0.5), (100, 0.45), (1000, 0.9)], 0.5)[0] == pytest.approx(10)  # a dip is no way back


def test_auto_never_looks_at_the_test_split() -> None:
    def tested(initialization: str, mode: str, val: float, test: float) -> Row:
        return row(initialization, mode, val_accuracy=val, val_loss=1.0, test_accuracy=test)

    rows = [
        tested("scratch", "finetune", 0.8, 0.9),
        tested("simclr", "finetune", 0.7, 1.0),
        tested("simclr", "probe", 0.9, 0.1),
    ]
    (chosen,) = results.with_auto(rows, ["simclr"])
    assert (chosen.chosen, chosen.test_accuracy, chosen.initialization) == ("probe", 0.1, "simclr")
    rows[2] = replace(rows[2], val_accuracy=0.75)
    assert results.with_auto(rows, ["simclr"])[0].chosen == "scratch"


def test_where_there_is_nothing_to_choose_by_nothing_is_chosen() -> None:
    def judged(initialization: str, mode: str, val: float | None, val_features: float | None = None) -> Row:
        return row(initialization, mode, val_accuracy=val, val_loss=1.0, cv_accuracy=val_features, cv_loss=1.0)

    rows = [judged("scratch", "finetune", None), judged("simclr", "finetune", None), judged("simclr", "probe", None)]
    assert results.with_auto(rows, ["simclr"]) == []
    assert results.best_classifier(rows) is None
    # what was held out and what was not cannot be compared: a few pictures of validation flatter
    val_features = [
        judged("scratch", "probe", 0.99),
        judged("scratch", "finetune", 0.9, 0.7),
        judged("simclr", "probe", 0.8, 0.75),
    ]
    best = results.best_classifier(val_features)
    assert best is not None
    assert best.finetuned == "simclr probe"


def test_scratch_is_scratch_whatever_setting_it_was_chosen_with(tmp_path: Path) -> None:
    run, test = tmp_path / "run", tmp_path / "test"
    for folder in (run, test):
        folder.mkdir()
    made = {"mode": "auto", "chosen": "scratch augment.probability=0.5", "labels": {"train": 9, "validation": 9},
            "seeds": {"training": 0}, "label_fraction": 0.1, "subset_fingerprint": "a", "dataset": "digits",
            "backbone": "smallcnn"}  # fmt: skip
    scores = {"of_run": str(run), "test/accuracy": 0.5, "test/f1_macro": 0.5}
    own = {"stage": "", "status": "finished", "config": {"seed": 0}, "overrides": [], "wall_time_seconds": 1.0}
    (run / "summary.json").write_text(json.dumps(own | made))
    (test / "summary.json").write_text(json.dumps(own | scores))
    rows = [results.row_of(test, "simclr")]
    assert conclusions(results.compared(rows), "auto") == [
        "simclr, 9 labels: nothing to compare with (scratch was chosen each time)"
    ]


SUMMARY: dict[str, Any] = {"status": "finished", "config": {"seed": 3}, "overrides": []}
FINETUNED: dict[str, Any] = {
    **{"stage": "finetune", "init": "simclr", "source": "outputs/pretrain/a", "mode": "probe", "dataset": "digits"},
    **{"backbone": "smallcnn", "label_fraction": 0.25, "labels_per_class": None, "subset_fingerprint": "5ub5e7"},
    **{"labels": {"train": 41, "validation": 17}, "seeds": {"training": 3, "subset": 4, "split": 5}},
    **{"val/accuracy": 0.61, "val/loss": 1.23, "wall_time_seconds": 12.5},
}
EVALUATED: dict[str, Any] = {
    **{"stage": "evaluate", "test/accuracy": 0.72, "test/f1_macro": 0.68, "test/nll": 0.9, "wall_time_seconds": 99.0}
}


def written(**changes: Any) -> Path:
    """Write the summaries of a classifier and of its evaluation; return the directory of the evaluation."""
    finetuned, evaluated = Path("outputs/finetune/a"), Path("outputs/evaluate/b")
    for folder, summary in ((finetuned, FINETUNED | changes), (evaluated, {**EVALUATED, "of_run": str(finetuned)})):
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps(SUMMARY | summary))
    return evaluated


def test_a_row_has_validation_and_training_from_the_classifier_and_test_from_its_evaluation() -> None:
    row = row_of(written(), "simclr")
    assert (row.val_accuracy, row.val_loss) == (0.61, 1.23)
    assert (row.test_accuracy, row.test_f1_macro) == (0.72, 0.68)
    assert (row.labels, row.labels_validation, row.seed, row.subset) == (41, 17, 3, "5ub5e7")
    assert (row.mode, row.initialization, row.dataset, row.backbone) == ("probe", "simclr", "digits", "smallcnn")
    assert (row.seconds, row.finetuned, row.evaluated) == (12.5, "outputs/finetune/a", "outputs/evaluate/b")
    assert row.label_budget == "0.25 of the labels"


def test_a_row_of_a_classifier_without_validation_has_no_validation_accuracy() -> None:
    row = row_of(written(**{"val/accuracy": None, "val/loss": None}), "simclr")
    assert row.val_accuracy is row.val_loss is row.merit is None
    assert row.test_accuracy == 0.72


def test_a_classifier_and_its_evaluation_are_the_same_row() -> None:
    evaluated = written(label_fraction=None, labels_per_class=4)
    assert rows_of(evaluated) == rows_of(Path("outputs/finetune/a")) == [row_of(evaluated, "simclr")]
    assert row_of(evaluated, "simclr").label_budget == "4 per class"


@pytest.mark.parametrize("cv", [(0.55, -0.9), None])
def test_classifiers_are_compared_by_cross_validation_where_there_is_one(cv: tuple[float, float] | None) -> None:
    row = row_of(written(), "simclr", cv)
    assert row.merit == (cv or (0.61, -1.23))
    assert (row.cv_accuracy, row.cv_loss) == ((0.55, 0.9) if cv else (None, None))
