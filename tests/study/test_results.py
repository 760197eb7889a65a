"""From the summaries of a classifier and its evaluation to a row of the table."""

import json
from pathlib import Path
from typing import Any

import pytest

from sslrun.study.results import row_of, rows_of

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
