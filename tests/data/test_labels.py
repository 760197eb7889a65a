"""Splits, folds and label budgets."""

import hashlib
import itertools
import os

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
    assert counts(LABELS[LabelBudget(per_class=11).rows(LABELS)]) == {0: 11, 1: 11, 2: 10}
    assert LabelBudget(per_class=11).shortage(LABELS, CLASSES) == (
        "labels_per_class=11: rose has 10 (without validation); all of them are used"
    )
    with pytest.raises(UserError, match="class dog has only 1 training image, too few to split off a validation set"):
        validation(np.array([0, 0, 0, 1]), ["cat", "dog"], 0.1, 0)


def test_small_classes_give_all_their_labels_and_the_others_as_many_as_wanted() -> None:
    labels = np.repeat([0, 1, 2], [200, 7, 5])
    budget = LabelBudget(per_class=8)
    rows = budget.rows(labels)
    assert counts(labels[rows]) == {0: 8, 1: 7, 2: 5}
    assert set(LabelBudget(per_class=6).rows(labels)) < set(rows)
    assert budget.shortage(labels, ["a", "b", "c"]) == (
        "labels_per_class=8: b has 7, c has 5 (without validation); all of them are used"
    )
    assert LabelBudget(per_class=5).shortage(labels, ["a", "b", "c"]) is None
    assert LabelBudget(0.001).shortage(labels, ["a", "b", "c"]) is None


def test_of_many_small_classes_five_are_named() -> None:
    labels, names = np.repeat(np.arange(7), 2), list("abcdefg")
    assert len(LabelBudget(per_class=3).rows(labels)) == 14
    assert LabelBudget(per_class=3).shortage(labels, names) == (
        "labels_per_class=3: a has 2, b has 2, c has 2, d has 2, e has 2 and 2 more classes (without validation); all "
        "of them are used"
    )
    assert "e has 2 and 1 more class (" in str(LabelBudget(per_class=3).shortage(labels[:12], names))


def test_the_classes_reported_as_too_small_give_fewer_labels() -> None:
    """`data check` and training use the same numbers."""
    sizes = counts(LABELS)
    taken = validation_sizes(sizes, 0.1)
    keep, _ = validation(LABELS, CLASSES, 0.1, 0)
    assert counts(LABELS[keep]) == {c: n - taken[c] for c, n in sizes.items()}
    assert LabelBudget(per_class=10).too_small(counts(LABELS[keep]), sizes) == [2]
    assert counts(LABELS[keep][LabelBudget(per_class=10).rows(LABELS[keep], sizes)]) == {0: 10, 1: 10, 2: 9}
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


def naive(permutation: np.ndarray, labels: np.ndarray, sizes: dict[int, int]) -> list[int]:
    """Return the first images of each class in a permutation, sorted."""
    left = dict(sizes)
    taken = []
    for i in permutation.tolist():
        c = int(labels[i])
        if left.get(c, 0) > 0:
            left[c] -= 1
            taken.append(i)
    return sorted(taken)


UNEVEN = np.array([2, 0, 1] * 8 + [0] * 10 + [1] * 3)  # 18, 11 and 8 of the classes 0, 1 and 2


@pytest.mark.parametrize("seed", [0, 4])
def test_validation_subsets_and_folds_are_the_same_as_ever_and_independent_of_each_other(seed: int) -> None:
    """Other random numbers would change every published result."""
    permutations = [np.random.default_rng([seed, purpose]).permutation(len(UNEVEN)) for purpose in (1, 2, 3)]
    keep, val = validation(UNEVEN, CLASSES, 0.15, seed)
    assert val.tolist() == naive(permutations[0], UNEVEN, {0: 3, 1: 2, 2: 1})
    assert keep.tolist() == sorted(set(range(len(UNEVEN))) - set(val.tolist()))
    for budget, sizes in (
        (LabelBudget(0.15, seed=seed), {0: 3, 1: 2, 2: 1}),
        (LabelBudget(0.01, seed=seed), {0: 1, 1: 1, 2: 1}),
        (LabelBudget(per_class=4, seed=seed), {0: 4, 1: 4, 2: 4}),
        (LabelBudget(0.9, per_class=2, seed=seed), {0: 2, 1: 2, 2: 2}),
        (LabelBudget(seed=seed), {0: 18, 1: 11, 2: 8}),
    ):
        assert budget.rows(UNEVEN).tolist() == naive(permutations[1], UNEVEN, sizes)
    larger = LabelBudget(0.5, seed=seed).rows(UNEVEN, {0: 20, 1: 30, 2: 9})  # of 1 there are fewer than half of 30
    assert larger.tolist() == naive(permutations[1], UNEVEN, {0: 10, 1: 11, 2: 4})
    for k in range(3):
        by_class = [i for c in range(3) for i in permutations[2].tolist() if UNEVEN[i] == c]
        assert fold_rows(UNEVEN, k, 3, seed).tolist() == sorted(by_class[k::3])


def test_the_test_split_is_a_fifth_of_each_class_by_the_hash_of_the_whole_name() -> None:
    names = [f"folder {i}/image.jpg" for i in range(len(UNEVEN) - 1)] + ["caf\udce9/image.jpg"]
    hashes = [hashlib.sha256(os.fsencode(n)).digest() for n in names]
    order = np.array(sorted(range(len(names)), key=lambda i: hashes[i]))
    train, test = hashed_train_test_split(names, UNEVEN)
    assert test.tolist() == naive(order, UNEVEN, {0: 4, 1: 2, 2: 2})
    assert train.tolist() == sorted(set(range(len(names))) - set(test.tolist()))
    assert len(hashed_train_test_split(names, UNEVEN, 0.5)[1]) == 9 + 6 + 4


def test_validation_has_at_least_one_image_of_each_class_and_none_at_a_fraction_of_0() -> None:
    assert validation_sizes({0: 3, 1: 26, 2: 100}, 0.1) == {0: 1, 1: 3, 2: 10}
    assert validation_sizes({0: 3, 1: 26}, 0.0) == {0: 0, 1: 0}
    assert [len(rows) for rows in validation(LABELS, CLASSES, 0.0, 0)] == [160, 0]


def test_a_budget_is_checked_and_has_one_value() -> None:
    assert [b.value for b in (LabelBudget(), LabelBudget(0.1), LabelBudget(per_class=5), LabelBudget(0.1, 5))] == [
        1.0, 0.1, 5, 5,
    ]  # fmt: skip
    LabelBudget(1.0).check(["label_fraction"])
    LabelBudget(per_class=5).check(["labels_per_class", "seed"])
    with pytest.raises(UserError, match=r"label_fraction must be at most 1, found 1\.5"):
        LabelBudget(1.5).check()
    with pytest.raises(UserError, match="set label_fraction or labels_per_class, not both"):
        LabelBudget(0.5).check(["labels_per_class", "seed", "label_fraction"])


def test_classes_too_small_for_a_fraction_are_judged_by_their_size_with_validation() -> None:
    available, sizes = {0: 9, 1: 18, 2: 5}, {0: 10, 1: 20, 2: 9}
    assert LabelBudget(0.1).too_small(available, sizes) == [2]
    assert LabelBudget(0.05).too_small(available, sizes) == [0, 2]
    assert LabelBudget().too_small(available, sizes) == []
    assert LabelBudget(0.1, per_class=6).too_small(available, sizes) == [2]
