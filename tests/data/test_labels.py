"""Splits, folds and label budgets."""

import hashlib
import itertools
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslrun.base.errors import UserError
from sslrun.data.groups import groups_per_class
from sslrun.data.labels import (
    Fold,
    LabelBudget,
    counts,
    folds,
    hashed_train_test_split,
    label_order,
    validation,
    validation_sizes,
)
from tests.data.test_groups import random_groups
from tests.helpers import bounded

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
def test_case_51_budgets_are_nested_and_stratified(seed: int) -> None:
    subsets = [set(LabelBudget(fraction=f, seed=seed).rows(LABELS).tolist()) for f in (0.02, 0.05, 0.1, 0.5, 1.0)]
    for small, large in itertools.pairwise(subsets):
        assert small < large
    assert counts(LABELS[sorted(subsets[2])]) == {0: 10, 1: 5, 2: 1}
    assert len(subsets[-1]) == 160
    some = set(LabelBudget(per_class=3, seed=seed).rows(LABELS).tolist())
    more = set(LabelBudget(per_class=7, seed=seed).rows(LABELS).tolist())
    assert some < more
    assert counts(LABELS[sorted(some)]) == {0: 3, 1: 3, 2: 3}


def test_seeds_change_subsets_and_validation() -> None:
    assert LabelBudget(20, seed=0).rows(LABELS).tolist() != LabelBudget(20, seed=1).rows(LABELS).tolist()
    assert validation(LABELS, CLASSES, 0.1, 0)[1].tolist() != validation(LABELS, NAMES, 0.1, 1)[1].tolist()


def random_labels(seed: int) -> np.ndarray:
    """Return labels of up to 8 classes with 1 to 60 images each, in random order; some class ids do not occur."""
    rng = np.random.default_rng(seed)
    classes = rng.choice(12, int(rng.integers(1, 9)), replace=False)
    return rng.permutation(np.repeat(classes, rng.integers(1, 61, len(classes)))).astype(np.int64)


@given(st.integers(0, 10_000), st.data())
@bounded(80)
def test_a_budget_is_exact_in_total_and_every_smaller_one_is_a_part_of_it(seed: int, data: st.DataObject) -> None:
    labels = random_labels(seed)
    classes = len(counts(labels))
    small, large = sorted(data.draw(st.lists(st.integers(classes, len(labels)), min_size=2, max_size=2)))
    a, b = (LabelBudget(n, seed=seed).rows(labels) for n in (small, large))
    assert (len(a), len(b)) == (small, large)
    assert a.tolist() == sorted(set(a.tolist()))
    assert {*a.tolist()} <= {*b.tolist()}
    fraction = LabelBudget(fraction=large / len(labels), seed=seed)
    assert fraction.rows(labels).tolist() == b.tolist()


@given(st.integers(0, 10_000))
@bounded(60)
def test_every_prefix_of_the_order_is_stratified(seed: int) -> None:
    """After its first image, each class is within one image of the share that all classes have in common."""
    labels = random_labels(seed)
    order, sizes = label_order(labels, seed), counts(labels)
    assert sorted(order.tolist()) == list(range(len(labels)))
    assert sorted(labels[order[: len(sizes)]].tolist()) == list(sizes)
    for m in range(len(sizes), len(labels) + 1):
        taken = counts(labels[order[:m]])
        lowest = max((taken[c] - 1) / n for c, n in sizes.items() if taken[c] > 1) if m > len(sizes) else 0.0
        highest = min((taken[c] + 1) / n for c, n in sizes.items())
        assert lowest <= highest + 1e-9  # a share for which no class has more than one image too many or too few


@pytest.mark.parametrize("n", [7, 10])
def test_classes_of_one_size_have_equally_many_labels_in_every_budget(n: int) -> None:
    labels = np.random.default_rng(n).permutation(np.repeat(np.arange(n), 20))
    for total in range(n, 20 * n + 1):
        taken = counts(labels[LabelBudget(total, seed=3).rows(labels)])
        assert len(taken) == n
        assert max(taken.values()) - min(taken.values()) <= 1


@given(st.integers(0, 10_000))
@bounded(40)
def test_the_order_is_one_of_each_class_and_then_by_rank_and_class_size(seed: int) -> None:
    labels = random_labels(seed)
    permutation = np.random.default_rng([seed, 2]).permutation(len(labels)).tolist()
    sizes = {c: labels.tolist().count(c) for c in labels.tolist()}
    seen: dict[int, int] = dict.fromkeys(sizes, 0)
    placed = []
    for position, i in enumerate(permutation):
        c = int(labels[i])
        seen[c] += 1
        placed.append((seen[c] > 1, (seen[c] - 0.5) / sizes[c] if seen[c] > 1 else 0, position, i))
    assert label_order(labels, seed).tolist() == [i for *_, i in sorted(placed)]


@pytest.mark.parametrize("seed", [0, 4])
def test_the_order_of_labels_is_the_same_as_ever(seed: int) -> None:
    """Another order would change every result."""
    golden = {
        0: [12, 19, 11, 24, 35, 10, 0, 31, 8, 26, 13, 21],
        4: [21, 25, 8, 30, 2, 10, 15, 7, 36, 33, 27, 9],
    }
    assert label_order(UNEVEN, seed)[:12].tolist() == golden[seed]


def test_a_fraction_refers_to_all_training_images() -> None:
    keep, _ = validation(LABELS, CLASSES, 0.2, 0)
    subset = LabelBudget(fraction=0.5).rows(LABELS[keep], of=160)
    assert counts(LABELS[keep][subset]) == {0: 50, 1: 25, 2: 5}
    assert len(LabelBudget(fraction=0.9).rows(LABELS[keep], of=160)) == 128  # all that are left
    assert len(LabelBudget(40).rows(LABELS[keep], of=160)) == 40


def test_case_45_small_classes_give_all_their_labels_and_the_others_as_many_as_wanted() -> None:
    labels = np.repeat([0, 1, 2], [200, 7, 5])
    budget = LabelBudget(per_class=8)
    rows = budget.rows(labels)
    assert counts(labels[rows]) == {0: 8, 1: 7, 2: 5}
    assert budget.size(labels) == len(rows) == 20
    assert set(LabelBudget(per_class=6).rows(labels)) < set(rows)
    assert budget.too_small(counts(labels)) == [1, 2]
    shortage = "labels_per_class=8: b has 7, c has 5; all of them are used"
    assert budget.shortage(labels, ["a", "b", "c"]) == shortage
    for enough in (LabelBudget(per_class=5), LabelBudget(fraction=0.1), LabelBudget(3), LabelBudget()):
        assert enough.shortage(labels, ["a", "b", "c"]) is None
        assert enough.too_small(counts(labels)) == []


def test_of_many_small_classes_five_are_named() -> None:
    labels, names = np.repeat(np.arange(7), 2), list("abcdefg")
    assert len(LabelBudget(per_class=3).rows(labels)) == 14
    assert LabelBudget(per_class=3).shortage(labels, names) == (
        "labels_per_class=3: a has 2, b has 2, c has 2, d has 2, e has 2 and 2 more classes; all of them are used"
    )
    assert "e has 2 and 1 more class;" in str(LabelBudget(per_class=3).shortage(labels[:12], names))


FEWER = (
    "fewer than the 3 classes; every class needs a label: set labels=3 or more, or use fewer classes (dataset.classes)"
)


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        (LabelBudget(161), "labels=161: there are only 160 labels for training; set fewer"),
        (LabelBudget(2), f"labels=2 is {FEWER}"),
        (LabelBudget(fraction=0.01), f"label_fraction=0.01 is 2 labels, which is {FEWER}"),
        (LabelBudget(fraction=0.001), f"label_fraction=0.001 is 0 labels, which is {FEWER}"),
    ],
)
def test_a_budget_that_cannot_be_met_is_one_line(budget: LabelBudget, text: str) -> None:
    for function in (budget.size, budget.rows):
        with pytest.raises(UserError) as error:
            function(LABELS)
        assert str(error.value) == text


def test_the_largest_and_the_smallest_budget() -> None:
    assert LabelBudget(160).rows(LABELS).tolist() == list(range(160))
    assert counts(LABELS[LabelBudget(3).rows(LABELS)]) == {0: 1, 1: 1, 2: 1}
    assert counts(LABELS[LabelBudget(per_class=1).rows(LABELS)]) == {0: 1, 1: 1, 2: 1}
    assert LabelBudget().size(LABELS) == 160


def test_a_budget_is_written_as_a_setting() -> None:
    budgets = {
        "labels=60": LabelBudget(60),
        "labels=1234567": LabelBudget(1234567),
        "labels_per_class=5": LabelBudget(per_class=5),
        "label_fraction=0.1": LabelBudget(fraction=0.1),
        "label_fraction=1": LabelBudget(),
    }
    assert [b.text for b in budgets.values()] == list(budgets)
    assert [b.value for b in budgets.values()] == [60, 1234567, 5, 0.1, 1.0]
    assert LabelBudget(60, 0.1, 5).text == "labels=60"
    assert LabelBudget(None, 0.1, 5).text == "labels_per_class=5"


def test_a_budget_has_one_key() -> None:
    LabelBudget(fraction=1.0).check(["label_fraction"])
    LabelBudget(per_class=5).check(["labels_per_class", "seed"])
    LabelBudget(60).check(["labels"])
    with pytest.raises(UserError, match=r"label_fraction must be at most 1, found 1\.5$"):
        LabelBudget(fraction=1.5).check()
    with pytest.raises(UserError, match=r"label_fraction must be at most 1, found 60; .* use labels=60"):
        LabelBudget(fraction=60).check(["label_fraction"])
    with pytest.raises(UserError, match="set only one of labels_per_class, label_fraction"):
        LabelBudget(fraction=0.5, per_class=5).check(["labels_per_class", "seed", "label_fraction"])
    with pytest.raises(UserError, match="set only one of labels, labels_per_class, label_fraction"):
        LabelBudget(60, 1.0, 5).check(["label_fraction", "labels", "labels_per_class"])


def test_of_keys_in_yaml_files_those_on_the_command_line_take_precedence_or_are_refused() -> None:
    LabelBudget(60, 0.1, 5).check(["labels"])
    LabelBudget(None, 0.1, 5).check(["labels_per_class", "labels"])  # labels=null
    LabelBudget(60, 1.0).check()
    with pytest.raises(UserError) as error:
        LabelBudget(60, 1.0, 5).check(["labels_per_class"])
    assert str(error.value) == "labels_per_class=5 has no effect, since labels=60 is set, too: add labels=null"
    for fraction in (0.1, 1.0):
        with pytest.raises(UserError, match=rf"label_fraction={fraction:g} has no effect, since labels_per_class=5 is"):
            LabelBudget(None, fraction, 5).check(["label_fraction"])
    with pytest.raises(UserError, match="set only one of labels, labels_per_class"):
        LabelBudget(60, 1.0, 5).check(["seed"])
    with pytest.raises(UserError, match="set only one of labels, label_fraction"):
        LabelBudget(60, 0.1).check()


def check_folds(labels: np.ndarray, most: int, result: list[Fold], groups: np.ndarray | None = None) -> None:
    """Check what holds for all folds: each image that can be is held out once, and neither class nor group is lost."""
    units = np.arange(len(labels)).astype(str) if groups is None else groups
    units_of = {c: {*units[labels == c].tolist()} for c in counts(labels)}
    kept = set().union(*(u for u in units_of.values() if len(u) == 1))  # the only one of a class
    held_out = [i for i, unit in enumerate(units.tolist()) if unit not in kept]
    assert len(result) <= most
    assert sorted(i for fold in result for i in fold.val.tolist()) == held_out
    for fold in result:
        assert sorted([*fold.train, *fold.val]) == list(range(len(labels)))
        assert len(fold.val)
        assert {*labels[fold.train].tolist()} == {*labels.tolist()}
        assert not {*units[fold.train].tolist()} & {*units[fold.val].tolist()}


@given(st.integers(0, 10_000), st.sampled_from([2, 3, 5, 10]))
@bounded(80)
def test_folds_hold_out_each_image_once_but_single_ones(seed: int, most: int) -> None:
    labels = random_labels(seed)
    result = folds(labels, most, seed)
    check_folds(labels, most, result)
    several = [n for n in counts(labels).values() if n > 1]
    assert len(result) == (min(most, *several) if several else 0)
    for c, n in counts(labels).items():
        shares = [int((labels[fold.val] == c).sum()) for fold in result]
        assert n == 1 or max(shares) - min(shares) <= 1
    if result:
        sizes = [len(fold.val) for fold in result]
        assert max(sizes) - min(sizes) <= 1


def test_folds_are_those_of_their_seed() -> None:
    labels = np.repeat([0, 1, 2], [9, 6, 1])
    first, again, other = (folds(labels, 3, seed) for seed in (0, 0, 1))
    assert [f.val.tolist() for f in first] == [f.val.tolist() for f in again]
    assert [f.val.tolist() for f in first] != [f.val.tolist() for f in other]
    permutation = [i for i in np.random.default_rng([0, 3]).permutation(15).tolist()]
    by_class = [i for c in range(2) for i in permutation if labels[i] == c]
    assert [f.val.tolist() for f in first] == [sorted(by_class[k::3]) for k in range(3)]


def test_without_any_class_of_two_there_are_no_folds() -> None:
    assert folds(np.arange(7), 5, 0) == []
    assert folds(np.array([0, 0, 1, 1]), 5, 0, np.array([*"aabb"], dtype=object)) == []


@given(st.integers(0, 10_000), st.sampled_from([2, 3, 5]))
@bounded(40)
def test_folds_of_groups_of_one_class_hold_out_each_group_once(seed: int, most: int) -> None:
    labels, groups = random_groups(np.random.default_rng(seed))
    result = folds(labels, most, seed, groups)
    check_folds(labels, most, result, groups)
    several = [n for n in groups_per_class(labels, groups).values() if n > 1]
    assert len(result) == (min(most, *several) if several else 0)


@pytest.mark.parametrize("seed", range(150))
def test_folds_of_groups_of_several_classes_are_whole_or_refused(seed: int) -> None:
    """Of few groups, many have the only image of a class."""
    rng = np.random.default_rng(seed)
    groups = np.repeat([*"abcdefgh"], rng.integers(0, 5, 8)).astype(object)
    labels = rng.integers(0, int(rng.integers(2, 7)), len(groups))
    most = int(rng.choice([2, 3, 5]))
    try:
        result = folds(labels, most, seed, groups)
    except UserError as error:
        assert "would have no training image of" in str(error)
        return
    check_folds(labels, most, result, groups)


def test_a_group_with_the_only_image_of_its_class_is_never_held_out() -> None:
    """The plate is on one photograph, which shows two cups, too."""
    labels = np.array([0, 0, 2, 0, 0, 0, 1, 1, 1, 1])
    groups = np.array([*"aaabbccdde"], dtype=object)
    result = folds(labels, 5, 0, groups)
    check_folds(labels, 5, result, groups)
    assert len(result) == 2
    assert all({0, 1, 2} <= {*fold.train.tolist()} for fold in result)


def test_a_single_group_that_can_be_held_out_is_one_fold() -> None:
    """Two of the three groups of class 0 have the only images of classes 1 and 2."""
    labels, groups = np.array([0, 1, 0, 2, 0, 0]), np.array([*"aabbcc"], dtype=object)
    (fold,) = folds(labels, 5, 0, groups)
    assert (fold.train.tolist(), fold.val.tolist()) == ([0, 1, 2, 3], [4, 5])


def test_folds_in_which_some_class_would_have_no_training_image_are_refused() -> None:
    """Both groups with images of class 1 are needed to train on class 0 or class 1."""
    labels = np.array([0, 1, 0, 1, 2, 2, 3, 3])
    groups = np.array([*"aabbabab"], dtype=object)
    assert len(folds(labels, 2, 0, groups)) == 2
    labels, groups = np.array([0, 1, 1, 2, 2, 0]), np.array([*"aabbcc"], dtype=object)
    refused = []
    for seed in range(10):
        try:
            check_folds(labels, 2, folds(labels, 2, seed, groups), groups)
        except UserError as error:
            refused.append(str(error))
    assert {*refused} == {
        "dataset.groups: cross-validation with 2 folds would have no training image of 1 class, since groups have "
        "images of several classes: label more groups, or set validation=extra"
    }


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
def test_validation_and_labels_per_class_are_the_same_as_ever_and_independent_of_each_other(seed: int) -> None:
    """Other random numbers would change every published result."""
    permutations = [np.random.default_rng([seed, purpose]).permutation(len(UNEVEN)) for purpose in (1, 2)]
    keep, val = validation(UNEVEN, CLASSES, 0.15, seed)
    assert val.tolist() == naive(permutations[0], UNEVEN, {0: 3, 1: 2, 2: 1})
    assert keep.tolist() == sorted(set(range(len(UNEVEN))) - set(val.tolist()))
    for n in (2, 4):
        rows = LabelBudget(fraction=0.9, per_class=n, seed=seed).rows(UNEVEN)
        assert rows.tolist() == naive(permutations[1], UNEVEN, dict.fromkeys(range(3), n))


def test_any_class_too_small_for_validation_is_named() -> None:
    with pytest.raises(UserError, match="class dog has only 1 training image, too few to split off a validation set"):
        validation(np.array([0, 0, 0, 1]), ["cat", "dog"], 0.1, 0)


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
