"""Splits, folds and label budgets."""

import itertools

import numpy as np
import pytest

from sslrun.base.errors import UserError
from sslrun.data.labels import LabelBudget, counts, fold_rows, hashed_train_test_split, validation, validation_sizes

CLASSES = ["daisy", "tulip", "rose"]
LABELS = np.repeat([0, 1, 2], [100, 50, 10])
NAMES = [f"class {c}/{i}.jpg" for i, c in enumerate(LABELS)]


def test_case_50_train_validation_and_test_are_disjoint_and_complete() -> None:
    train, test = hashed_train_test_split(NAMES, LABELS)
    keep, val = validation(LABELS[train], CLASSES, 0.2, 0)
    parts = [set(test.tolist()), set(train[keep].tolist()), set(train[val].tolist())]
    assert set.union(*parts) == set(range(160))
    assert sum(map(len, parts)) == 160


def test_splits_are_stratified() -> None:
    train, test = hashed_train_test_split(NAMES, LABELS)
    assert counts(LABELS[test]) == {0: 20, 1: 10, 2: 2}
    _, val = validation(LABELS[train], CLASSES, 0.1, 0)
    assert counts(LABELS[train][val]) == {0: 8, 1: 4, 2: 1}


def test_the_test_split_hardly_changes_when_images_are_added() -> None:
    _, before = hashed_train_test_split(NAMES, LABELS)
    names = [f"class 0/new{i}.jpg" for i in range(3)] + NAMES
    _, after = hashed_train_test_split(names, np.concatenate([[0] * 3, LABELS]))
    left = {NAMES[i] for i in before} - {names[i] for i in after}
    assert len(left) <= 3


def test_the_test_split_does_not_depend_on_the_order_of_the_files() -> None:
    order = np.random.default_rng(0).permutation(160)
    _, a = hashed_train_test_split(NAMES, LABELS)
    _, b = hashed_train_test_split([NAMES[i] for i in order], LABELS[order])
    assert {NAMES[i] for i in a} == {NAMES[order[i]] for i in b}


@pytest.mark.parametrize("seed", [0, 1])
def test_case_51_subsets_are_nested_and_stratified(seed: int) -> None:
    subsets = [set(LabelBudget(f, seed=seed).rows(LABELS).tolist()) for f in (0.01, 0.05, 0.1, 0.5, 1.0)]
    for small, large in itertools.pairwise(subsets):
        assert small < large
    assert counts(LABELS[sorted(subsets[2])]) == {0: 10, 1: 5, 2: 1}
    assert len(subsets[-1]) == 160
    some = set(LabelBudget(per_class=3, seed=seed).rows(LABELS).tolist())
    more = set(LabelBudget(per_class=7, seed=seed).rows(LABELS).tolist())
    assert some < more
    assert counts(LABELS[sorted(some)]) == {0: 3, 1: 3, 2: 3}


def test_seeds_change_subsets_and_validation() -> None:
    assert LabelBudget(0.1, seed=0).rows(LABELS).tolist() != LabelBudget(0.1, seed=1).rows(LABELS).tolist()
    assert validation(LABELS, CLASSES, 0.1, 0)[1].tolist() != validation(LABELS, NAMES, 0.1, 1)[1].tolist()


def test_a_fraction_refers_to_the_whole_training_set() -> None:
    keep, _ = validation(LABELS, CLASSES, 0.2, 0)
    subset = LabelBudget(0.5).rows(LABELS[keep], class_sizes=counts(LABELS))
    assert counts(LABELS[keep][subset]) == {0: 50, 1: 25, 2: 5}


def test_case_45_more_labels_than_available() -> None:
    with pytest.raises(UserError, match="rose has 10"):
        LabelBudget(per_class=11).rows(LABELS, class_names=CLASSES)
    with pytest.raises(UserError, match="class dog has only 1 training image, too few to split off a validation set"):
        validation(np.array([0, 0, 0, 1]), ["cat", "dog"], 0.1, 0)


def test_the_classes_reported_as_too_small_are_those_refused() -> None:
    """`data check` and training use the same numbers."""
    sizes = counts(LABELS)
    taken = validation_sizes(sizes, 0.1)
    keep, _ = validation(LABELS, CLASSES, 0.1, 0)
    assert counts(LABELS[keep]) == {c: n - taken[c] for c, n in sizes.items()}
    assert LabelBudget(per_class=10).too_small(counts(LABELS[keep]), sizes) == [2]
    with pytest.raises(UserError, match="more than available: 2 has 9 "):
        LabelBudget(per_class=10).rows(LABELS[keep], sizes)
    assert LabelBudget(per_class=9).too_small(counts(LABELS[keep]), sizes) == []
    assert LabelBudget(0.05).too_small(counts(LABELS[keep]), sizes) == [2]  # one image of it is used nevertheless
    assert counts(LABELS[keep][LabelBudget(0.05).rows(LABELS[keep], sizes)]) == {0: 5, 1: 2, 2: 1}


def test_folds_are_stratified_and_cover_every_label_once() -> None:
    from sslrun.data.labels import fold_rows

    labels = np.repeat([0, 1, 2], [9, 6, 1])
    val_features = [fold_rows(labels, k, 3, seed=0) for k in range(3)]
    assert sorted(np.concatenate(val_features).tolist()) == list(range(16))
    for rows in val_features:
        assert (labels[rows] == 0).sum() == 3
        assert (labels[rows] == 1).sum() == 2
    assert not np.array_equal(val_features[0], fold_rows(labels, 0, 3, seed=1))


@pytest.mark.parametrize("seed", range(5))
def test_folds_of_classes_with_one_label_each_are_of_nearly_equal_size(seed: int) -> None:
    folds = [fold_rows(np.arange(7), k, 3, seed) for k in range(3)]
    assert sorted(map(len, folds)) == [2, 2, 3]
    assert sorted(np.concatenate(folds).tolist()) == list(range(7))


def test_folds_of_small_classes_are_of_nearly_equal_size() -> None:
    labels = np.repeat(np.arange(10), [2, 4, 1, 5, 2, 1, 1, 4, 2, 5])
    for n in (2, 3, 5):
        folds = [fold_rows(labels, k, n, seed=0) for k in range(n)]
        assert max(map(len, folds)) - min(map(len, folds)) <= 1
        for c in range(10):
            shares = [int((labels[rows] == c).sum()) for rows in folds]
            assert max(shares) - min(shares) <= 1
        assert sorted(np.concatenate(folds).tolist()) == list(range(len(labels)))


def test_a_fold_that_does_not_exist_is_refused() -> None:
    for k in (-1, 3):
        with pytest.raises(UserError, match=r"the first number must be from 0 to 2"):
            fold_rows(np.arange(9), k, 3, seed=0)
