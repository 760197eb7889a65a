"""The candidates of a finetuning, and their predictions in folds."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslrun.base.errors import UserError
from sslrun.config.types import Node
from sslrun.data.dataset import Dataset
from sslrun.data.labeled import Labeled
from sslrun.data.labels import Fold, folds
from sslrun.evaluation.probe import C_VALUES
from sslrun.evaluation.selection import score
from sslrun.training import candidates
from sslrun.training.candidates import Candidate, Compared, Folds, candidates_of, compared, folds_of
from sslrun.training.folds import fold_probabilities
from sslrun.training.frozen import Frozen
from tests.helpers import CPU
from tests.training.folding import CONFIG, changed, encoder, red_and_blue, training

SEARCH = ["augment.probability=0", "train.learning_rate=0.02"]


@pytest.mark.parametrize(
    ("init", "mode", "names"),
    [
        ("simclr", "auto", ["probe", "finetune", "scratch"]),
        ("scratch", "auto", ["scratch"]),
        ("simclr", "finetune", ["finetune"]),
        ("scratch", "finetune", ["scratch"]),
        ("simclr", "probe", ["probe"]),
        ("scratch", "probe", ["probe"]),
        ("simclr", "knn", ["knn"]),
    ],
)
def test_candidates_are_listed_from_the_simplest(init: str, mode: str, names: list[str]) -> None:
    config = changed(init=init, mode=mode)
    result = candidates_of(config, [])
    assert [(c.name, c.setting, str(c)) for c in result] == [(name, "", name) for name in names]
    assert all(c.config == config for c in result)
    assert [c.mode for c in result] == ["finetune" if n == "scratch" else n for n in names]


def test_each_setting_of_a_search_is_a_candidate_of_the_trained_networks_alone() -> None:
    result = candidates_of(CONFIG, SEARCH)
    assert list(map(str, result)) == [
        "probe",
        *(f"finetune {s}" for s in SEARCH),
        *(f"scratch {s}" for s in SEARCH),
    ]
    assert [c.config["augment"]["probability"] for c in result] == [1.0, 0, 1.0, 0, 1.0]
    assert [c.config["train"]["learning_rate"] for c in result] == [0.01, 0.01, 0.02, 0.01, 0.02]
    assert CONFIG["augment"]["probability"] == 1.0


def labeled(n: int, val: Dataset | None = None, groups: list[str] | None = None) -> Labeled:
    data = red_and_blue(n, groups)
    return Labeled(data, data, val, "extra" if val else "inside")


def positions(some: Sequence[Fold]) -> list[tuple[list[int], list[int]]]:
    return [(fold.train.tolist(), fold.val.tolist()) for fold in some]


@pytest.mark.parametrize(
    ("n", "regressions", "trainings"),
    [(2, 0, 0), (4, 2, 2), (6, 3, 3), (8, 4, 3), (60, 5, 3), (500, 5, 3), (502, 5, 1), (5000, 5, 1), (5002, 1, 1)],
)
def test_the_number_of_folds_follows_the_number_of_labels(n: int, regressions: int, trainings: int) -> None:
    result = folds_of(labeled(n), seed=4)
    assert (len(result.regressions), len(result.trainings)) == (regressions, trainings)
    if n > 500:
        assert positions(result.trainings) == positions(result.regressions[:1])
        assert len(result.trainings[0].val) == pytest.approx(n / 5, abs=1)
    elif n > 2:
        labels = np.arange(n) % 2
        assert positions(result.regressions) == positions(folds(labels, 5, 4))
        assert positions(result.trainings) == positions(folds(labels, 3, 4))


@pytest.mark.parametrize(("n", "grouped"), [(600, False), (6000, False), (600, True)])
def test_a_held_out_fifth_is_one_with_any_small_class(n: int, grouped: bool) -> None:
    data = red_and_blue(n, [f"g{i // 4}" for i in range(n)] if grouped else None)
    assert data.labels is not None
    data.labels[-2:], data.class_names = 2, ["red", "blue", "green"]
    if data.groups is not None:
        data.groups[-2:] = ["one", "two"]
    result = folds_of(Labeled(data, data, None, "inside"), seed=1)
    (fold,) = result.trainings
    assert len(fold.val) == pytest.approx(n / 5, abs=4)
    assert {*data.labels[torch.from_numpy(fold.train)].tolist()} == {0, 1, 2}
    assert sorted([*fold.train, *fold.val]) == list(range(n))
    if n > 5000:
        assert positions(result.regressions) == positions(result.trainings)


def test_a_validation_split_beside_the_budget_is_one_fold() -> None:
    result = folds_of(labeled(6, red_and_blue(3)), seed=0)
    assert positions(result.regressions) == positions(result.trainings) == [([0, 1, 2, 3, 4, 5], [6, 7, 8])]


def test_folds_do_not_divide_groups_and_refuse_to_lose_any_class() -> None:
    groups = [f"g{i // 4}" for i in range(24)]
    data = labeled(24, groups=groups)
    for fold in folds_of(data, 0).regressions:
        assert not {groups[i] for i in fold.train} & {groups[i] for i in fold.val}


def test_folds_that_would_lose_any_class_are_refused() -> None:
    """Each class is in two of three groups; of two folds one has two groups."""
    data = red_and_blue(6, [*"abbcca"])
    data.labels, data.class_names = torch.tensor([0, 0, 1, 1, 2, 2]), [*"abc"]
    with pytest.raises(UserError, match="cross-validation with 2 folds would have no training image of 1 class"):
        folds_of(Labeled(data, data, None, "inside"), 0)


DATA = red_and_blue(18)
PARTS = Folds(folds(np.arange(18) % 2, 5, 0), folds(np.arange(18) % 2, 3, 0))


def networks(names: Sequence[str], data: Dataset = DATA, parts: Folds = PARTS) -> dict[str, Frozen]:
    """Return the frozen network of each candidate's name."""
    return {
        name: Frozen(
            encoder(1 if name == "scratch" else 0), "average", data, parts.regressions, CPU, "none", name == "knn"
        )
        for name in names
    }


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of trainings of each comparison."""
    numbers: list[int] = []
    run = candidates.run_jobs

    def counting(function: Any, jobs: Sequence[Any], parallel: bool) -> Any:
        numbers.append(len(jobs))
        return run(function, jobs, parallel)

    monkeypatch.setattr(candidates, "run_jobs", counting)
    return numbers


def compare(some: list[Candidate], data: Dataset = DATA, parts: Folds = PARTS) -> Compared:
    return compared(some, networks([c.name for c in some], data, parts), parts, False, Path())


def test_candidates_are_evaluated_on_the_validation_parts_of_their_folds(trained: list[int]) -> None:
    some = candidates_of(CONFIG, SEARCH)
    result = compare(some)
    assert trained == [4 * 3]
    assert list(result.variants) == [f"probe average C={c:g}" for c in C_VALUES] + list(map(str, some[1:]))
    assert list(result.predictions.names) == ["probe"] * 7 + ["finetune"] * 2 + ["scratch"] * 2
    assert [result.candidates[i] for i in (0, 6, 7, 8, 9, 10)] == [some[0], *some]
    p = result.predictions.probabilities
    assert p.shape == (11, 18, 2)
    assert not np.isnan(p).any()
    for i, head in ((8, True), (10, False)):
        frozen = networks(["finetune" if head else "scratch"])["finetune" if head else "scratch"]
        for fold in PARTS.trainings:
            heads = frozen.initial_head(fold.train, CONFIG["label_smoothing"]) if head else None
            expected = fold_probabilities(training(changed(learning_rate=0.02), DATA, fold, frozen.encoder, heads))
            assert np.array_equal(p[i, fold.val], expected)
    scores = [score(result.predictions, i) for i in range(11)]
    assert list(result.scores()) == list(map(str, some))
    assert list(result.scores().values()) == [max(scores[:7]), *scores[7:]]


def test_images_that_no_training_was_evaluated_on_have_no_probabilities() -> None:
    parts = Folds(PARTS.regressions, PARTS.trainings[:1])
    result = compare(candidates_of(changed(mode="finetune"), []), parts=parts)
    known = ~np.isnan(result.predictions.probabilities).any((0, 2))
    assert np.flatnonzero(known).tolist() == PARTS.trainings[0].val.tolist()


def test_results_are_reused_after_an_interruption(trained: list[int]) -> None:
    some = candidates_of(changed(mode="finetune"), SEARCH)
    first = compare(some)
    results = sorted(p for p in Path("folds").glob("*.npy") if p.name != "images.npy")
    assert len(results) == 6
    again = compare(some)
    for path in results[:2]:
        path.unlink()
    after = compare(some)
    assert trained == [6, 0, 2]
    for other in (again, after):
        assert first.predictions.probabilities.tobytes() == other.predictions.probabilities.tobytes()
    assert sorted(p for p in Path("folds").glob("*.npy") if p.name != "images.npy") == results


def test_an_interrupted_comparison_keeps_the_results_it_has(
    monkeypatch: pytest.MonkeyPatch, trained: list[int]
) -> None:
    def interrupted(function: Any, jobs: Sequence[Any], parallel: bool) -> Any:
        yield 0, function(jobs[0])
        raise KeyboardInterrupt

    some = candidates_of(changed(mode="finetune"), [])
    with monkeypatch.context() as patch:
        patch.setattr(candidates, "run_jobs", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compare(some)
    compare(some)
    assert trained == [2]


def other_labels() -> Dataset:
    data = red_and_blue(18)
    assert data.labels is not None
    data.labels[:2] = data.labels[:2].flip(0)
    return data


def shifted(fold: Fold) -> Fold:
    """Return a fold with one training image less and one validation image more, in the same order."""
    every = np.concatenate([fold.train, fold.val])
    return Fold(every[: len(fold.train) - 1], every[len(fold.train) - 1 :])


@pytest.mark.parametrize("change", ["config", "seed", "labels", "weights", "folds", "one more validation image"])
def test_results_are_not_reused_after_a_change(change: str, trained: list[int]) -> None:
    config: Node = changed(mode="finetune", init="scratch")
    compare(candidates_of(config, []))
    data, parts = DATA, PARTS
    if change == "config":
        config = changed(mode="finetune", init="scratch", learning_rate=0.02)
    elif change == "seed":
        config = {**config, "seed": 1}
    elif change == "labels":
        data = other_labels()
    elif change == "folds":
        parts = Folds(PARTS.regressions, folds(np.arange(18) % 2, 3, seed=1))
    elif change == "one more validation image":
        parts = Folds(PARTS.regressions, [shifted(fold) for fold in PARTS.trainings])
    some = candidates_of(config, [])
    frozen = networks(["scratch"], data, parts)
    if change == "weights":
        next(v for k, v in frozen["scratch"].state.items() if k.endswith("weight")).ravel()[0] += 0.1
    compared(some, frozen, parts, False, Path())
    assert trained == [3, 3]


def test_frozen_candidates_are_not_trained(trained: list[int]) -> None:
    for mode in ("probe", "knn"):
        result = compare(candidates_of(changed(mode=mode), []))
        assert set(result.predictions.names) == {mode}
    assert trained == []
    assert not Path("folds").exists()


def test_macro_f1_decides_as_soon_as_classes_are_balanced() -> None:
    for balance, macro in (("none", False), ("sampling", True), ("logit", True)):
        assert compare(candidates_of(changed(mode="finetune", balance=balance), [])).predictions.macro == macro
        shutil.rmtree("folds")
