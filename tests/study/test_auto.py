"""The automatic choice among classifiers of a study."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sslrun.base.errors import UserError
from sslrun.base.output import write_json
from sslrun.evaluation.selection import Predictions, choose, corrected_accuracy
from sslrun.study.auto import with_auto
from sslrun.study.results import Row
from tests.helpers import row

LABELS = np.arange(60) % 2


def predicted(initialization: str, mode: str, *accuracies: float, **known: Any) -> Row:
    """Return a row whose run has out-of-fold predictions with these accuracies, one for each variant."""
    directory = Path("outputs", f"{initialization} {mode} {len(list(Path('.').glob('outputs/*')))}")
    directory.mkdir(parents=True)
    wrong = np.array([np.arange(60) >= 60 * a for a in accuracies])
    p = np.where((LABELS[None] ^ wrong)[..., None] == np.arange(2), 0.9, 0.1).astype(np.float32)
    names = np.array([f"{mode} {i}" for i in range(len(accuracies))])
    with (directory / "out_of_fold.npz").open("wb") as file:
        np.savez_compressed(file, candidates=names, probabilities=p, labels=LABELS)
    return row(initialization, mode, finetuned=str(directory), **{"val_accuracy": max(accuracies), **known})


def test_the_choice_is_that_of_finetune_among_all_variants() -> None:
    rows = [
        predicted("scratch", "finetune", 0.6, 0.8),
        predicted("simclr", "finetune", 0.5),
        predicted("simclr", "probe", 0.7, 0.3),
    ]
    (auto,) = with_auto(rows, ["simclr"])
    probabilities = np.concatenate(
        [np.load(Path(rows[i].finetuned, "out_of_fold.npz"))["probabilities"] for i in (2, 1, 0)]
    )
    every = Predictions(["probe"] * 2 + ["finetune"] + ["scratch"] * 2, probabilities, LABELS)
    assert choose(every) == 4
    expected = replace(rows[0], initialization="simclr", mode="auto", chosen="scratch", source=rows[1].source)
    assert auto == replace(expected, val_accuracy=corrected_accuracy(every))
    assert auto.val_accuracy != rows[0].val_accuracy  # corrected for the choice


def test_a_tie_goes_to_the_simpler_classifier_and_test_accuracy_does_not_matter() -> None:
    rows = [
        predicted("scratch", "finetune", 0.9, test_accuracy=0.99),
        predicted("simclr", "finetune", 0.9, test_accuracy=0.9),
        predicted("simclr", "probe", 0.9, test_accuracy=0.1),
    ]
    (auto,) = with_auto(rows, ["simclr"])
    assert (auto.chosen, auto.test_accuracy, auto.setting) == ("probe", 0.1, "")


def test_each_pretraining_is_chosen_on_its_own_and_scratch_is_shared() -> None:
    rows = [predicted("scratch", "finetune", 0.7)]
    for seed, probe in ((0, 0.4), (1, 1.0)):
        rows += [predicted("simclr", m, a, pretrain_seed=seed) for m, a in (("finetune", 0.2), ("probe", probe))]
    first, second = with_auto(rows, ["simclr"])
    assert (first.pretrain_seed, first.chosen, first.finetuned) == (0, "scratch", rows[0].finetuned)
    assert (first.source, second.source) == ("simclr 0", "simclr 1")
    assert (second.pretrain_seed, second.chosen, second.finetuned) == (1, "probe", rows[4].finetuned)


def test_better_classifiers_with_other_labels_are_no_candidates() -> None:
    ours = [predicted("simclr", "finetune", 0.9), predicted("simclr", "probe", 0.2)]
    for other in ({"seed": 1}, {"subset": "b"}, {"label_budget": "labels=60"}, {"labels_val": 5}):
        (chosen,) = with_auto([*ours, predicted("simclr", "probe", 1.0, **other)], ["simclr"])
        assert chosen.finetuned == ours[0].finetuned
    for rival in (
        predicted("scratch", "probe", 1.0),
        predicted("scratch", "equal_time", 1.0),
        predicted("pixels", "knn", 1.0),
    ):
        (chosen,) = with_auto([*ours, rival], ["simclr"])
        assert chosen.finetuned == ours[0].finetuned


@pytest.mark.parametrize("balance", ["none", "logit"])
def test_with_balanced_classes_the_choice_is_by_macro_f1(balance: str) -> None:
    """A classifier that always says the larger class has the higher accuracy."""
    labels = np.r_[np.zeros(54, int), np.ones(6, int)]
    rows = [predicted("simclr", "probe", 1.0), predicted("simclr", "finetune", 1.0, balance=balance)]
    guesses = {"probe": np.zeros(60, int), "finetune": np.r_[np.ones(12, int), np.zeros(42, int), np.ones(6, int)]}
    for r in rows:
        p = np.eye(2, dtype=np.float32)[guesses[r.mode]][None]
        np.savez(Path(r.finetuned, "out_of_fold.npz"), candidates=np.array([r.mode]), probabilities=p, labels=labels)
    (auto,) = with_auto(rows, ["simclr"])
    assert auto.chosen == ("probe" if balance == "none" else "finetune")


def without_predictions(
    initialization: str, mode: str, accuracy: float | None, loss: float = 1.0, validation: str = "extra"
) -> Row:
    """Return a row of a run without predictions."""
    directory = Path("outputs", f"{initialization} {mode}")
    config = {"seed": 0, "validation": validation}
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "summary.json", {"stage": "finetune", "status": "finished", "config": config,
                                            "overrides": [], "wall_time_seconds": 1.0})  # fmt: skip
    return row(initialization, mode, finetuned=str(directory), val_accuracy=accuracy, val_loss=loss)


def test_without_predictions_the_choice_is_by_the_score_on_validation_and_then_by_loss() -> None:
    rows = [
        without_predictions("scratch", "finetune", 0.8, 0.9),
        without_predictions("simclr", "finetune", 0.8, 0.5),
        without_predictions("simclr", "probe", 0.7),
    ]
    (auto,) = with_auto(rows, ["simclr"])
    assert (auto.chosen, auto.val_accuracy) == ("finetune", 0.8)
    (auto,) = with_auto([replace(rows[0], val_loss=0.4), *rows[1:]], ["simclr"])
    assert auto.chosen == "scratch"


@pytest.mark.parametrize(("validation", "chosen"), [("inside", ["probe"]), ("extra", [])])
def test_one_label_per_class_gives_the_probe_and_no_validation_gives_no_choice(
    validation: str, chosen: list[str]
) -> None:
    rows = [without_predictions("scratch", "finetune", None, validation=validation)]
    rows += [without_predictions("simclr", mode, None, validation=validation) for mode in ("finetune", "probe")]
    assert [r.chosen for r in with_auto(rows, ["simclr"])] == chosen
    assert with_auto([replace(rows[0], val_accuracy=0.5), *rows[1:]], ["simclr"]) == []


def test_a_damaged_file_is_one_line() -> None:
    rows = [
        predicted("scratch", "finetune", 0.7),
        predicted("simclr", "finetune", 0.9),
        predicted("simclr", "probe", 0.2),
    ]
    Path(rows[1].finetuned, "out_of_fold.npz").write_text("PK nothing")
    with pytest.raises(UserError, match=r"simclr finetune 1/out_of_fold\.npz cannot be read"):
        with_auto(rows, ["simclr"])
