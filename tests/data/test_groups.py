"""Groups: their names by a regular expression, and splits that do not divide them."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from sslrun.base.errors import UserError
from sslrun.data.groups import described, group_folds, grouped, groups_per_class, held_out, matched, not_held_out
from sslrun.data.labels import hashed_train_test_split, validation

NAMES = ["a/cup_01.jpg", "a/cup_02.jpg", "a/mug_1.jpg", "b/pan_7.jpg", "b/lid.jpg"]


def by(names: Sequence[str], pattern: str) -> list[str]:
    return grouped(names, matched(names, pattern), pattern)


@pytest.mark.parametrize(
    ("pattern", "groups"),
    [
        (r"([^/]+)_\d+\.", ["cup", "cup", "mug", "pan", "b/lid.jpg"]),
        (r"[^/]+_", ["cup_", "cup_", "mug_", "pan_", "b/lid.jpg"]),  # no parentheses: the whole match
        (r"(cup)|(mug)", ["cup", "cup", "a/mug_1.jpg", "b/pan_7.jpg", "b/lid.jpg"]),  # the first of two, if it matches
        (r"_(\d*)", ["01", "02", "1", "7", "b/lid.jpg"]),
        (r"/(cup|)", ["cup", "cup", "a/mug_1.jpg", "b/pan_7.jpg", "b/lid.jpg"]),  # an empty match is none
    ],
)
def test_the_first_group_of_the_expression_names_the_group(pattern: str, groups: list[str]) -> None:
    assert by(NAMES, pattern) == groups


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("([a-z", r"dataset.groups=\(\[a-z: not a regular expression \(unterminated character set at position 1\)"),
        ("frame_", "dataset.groups=frame_: matches no image; it is searched in paths such as a/cup_01.jpg"),
        ("x*", r"dataset.groups=x\*: matches no image"),
        (r"\.(jpg)", r"dataset.groups=\\.\(jpg\): puts all 5 images into one group \(jpg\), which no split can divide"),
    ],
)
def test_an_expression_that_makes_no_groups_is_one_line(pattern: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        by(NAMES, pattern)
    assert len(str(error.value).splitlines()) == 1


def test_names_and_expressions_are_compared_in_composed_form() -> None:
    assert by(["é_1.jpg", "e_1.jpg"], "(e\N{COMBINING ACUTE ACCENT})_") == ["é", "e_1.jpg"]


def test_groups_are_described_in_a_sentence() -> None:
    assert described(NAMES, by(NAMES, r"([^/]+)_\d+\.")) == (
        "4 groups of images (dataset.groups), the largest cup with 2; 1 image in no group"
    )


def random_groups(rng: np.random.Generator, mixed: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and groups of up to 5 classes with 1 to 30 groups each; in random order."""
    classes = int(rng.integers(1, 6))
    labels: list[int] = []
    groups: list[str] = []
    for c in range(classes):
        for g in range(int(rng.integers(1, 31))):
            n = int(rng.geometric(0.2))
            labels += rng.integers(0, classes, n).tolist() if mixed else [c] * n
            groups += [f"{c} {g}"] * n
    order = rng.permutation(len(labels))
    return np.array(labels)[order], np.array(groups, dtype=object)[order]


def splits(labels: np.ndarray, groups: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray, float]]:
    names, classes = [str(i) for i in range(len(labels))], [str(c) for c in range(5)]
    return [
        (*hashed_train_test_split(names, labels, 0.2, groups), 0.2),  # type: ignore[arg-type]
        (*validation(labels, classes, 0.1, seed, groups), 0.1),
    ]


@pytest.mark.parametrize("seed", range(60))
def test_a_split_by_groups_is_disjoint_and_near_its_fraction(seed: int) -> None:
    labels, groups = random_groups(np.random.default_rng(seed))
    number = groups_per_class(labels, groups)
    if max(number.values()) < 2:
        with pytest.raises(UserError, match="into one group"):
            splits(labels, groups, seed)
        return
    for train, out, fraction in splits(labels, groups, seed):
        assert sorted([*train, *out]) == list(range(len(labels)))
        assert not {*groups[train]} & {*groups[out]}
        for c, n_groups in number.items():
            sizes = sorted(Counter(groups[labels == c]).values())
            n = int((labels[out] == c).sum())
            if n_groups == 1:
                assert n == 0
                continue
            assert 0 < n < sum(sizes)
            # Half of the largest group away from the target at most, or the smallest group, if nothing came closer.
            assert abs(n - fraction * sum(sizes)) <= max(sizes) / 2 + 1 or n == sizes[0]


@pytest.mark.parametrize("seed", range(60))
def test_groups_of_several_classes_are_not_divided_and_leave_each_class_in_training(seed: int) -> None:
    labels, groups = random_groups(np.random.default_rng(seed), mixed=True)
    if len(set(groups)) < 4:
        return
    for train, out, fraction in splits(labels, groups, seed):
        assert not {*groups[train]} & {*groups[out]}
        assert {*labels[train]} == {*labels}
        largest = max(Counter(groups).values())
        assert abs(len(out) - fraction * len(labels)) <= 2 * largest
        enough = {c for c, n in groups_per_class(labels, groups).items() if n > 3}
        assert enough <= {*labels[out]}


@pytest.mark.parametrize("seed", range(20))
def test_the_order_of_the_images_does_not_matter_and_seeds_do(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, groups = np.repeat(np.arange(40) % 2, 5), np.repeat([f"g{i}" for i in range(40)], 5).astype(object)
    order = rng.permutation(200)
    for (_, a, _), (_, b, _) in zip(splits(labels, groups, 0), splits(labels[order], groups[order], 0), strict=True):
        assert {*groups[a]} == {*groups[order][b]}
    test, val = (s[1] for s in splits(labels, groups, 0))
    other_test, other_val = (s[1] for s in splits(labels, groups, seed + 1))
    assert test.tolist() == other_test.tolist()
    assert val.tolist() != other_val.tolist()


@pytest.mark.parametrize("seed", range(20))
def test_adding_a_group_moves_few_others(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, 100)
    groups = np.repeat([f"g{i}" for i in range(100)], sizes).astype(object)
    labels = np.repeat(np.arange(100) % 3, sizes)
    more, labels_of_more = np.append(groups, ["new"] * 6), np.append(labels, [seed % 3] * 6)
    before = {*groups[held_out(labels, groups, {0: 20, 1: 20, 2: 20}, "")]}
    after = {*more[held_out(labels_of_more, more, {0: 20, 1: 20, 2: 20} | {seed % 3: 21}, "")]}
    assert len(before ^ (after - {"new"})) <= 5


def test_classes_with_one_group_stay_in_training_and_are_named() -> None:
    labels, groups = np.array([0] * 6 + [1] * 6), np.array([*"aabbcc", *"zzzzzz"], dtype=object)
    for train, out, _ in splits(labels, groups, 0):
        assert {*labels[train]} == {0, 1}
        assert {*labels[out]} == {0}
        assert not_held_out(labels, out, ["cup", "mug"]) == "mug"


def test_no_split_if_each_class_has_one_group() -> None:
    labels, groups = np.array([0, 0, 1, 1]), ["a", "a", "b", "b"]
    with pytest.raises(UserError, match=r"dataset.groups puts the images of each class into one group; a test split"):
        hashed_train_test_split([*"abcd"], labels, 0.2, groups)
    with pytest.raises(UserError, match=r"dataset.groups puts the training images .* set validation=inside"):
        validation(labels, ["x", "y"], 0.1, 0, groups)
    assert hashed_train_test_split([*"abcd"], labels, 1.0, groups)[1].tolist() == [0, 1, 2, 3]
    assert validation(labels, ["x", "y"], 0.0, 0, groups)[1].tolist() == []


@pytest.mark.parametrize("seed", [*range(30), 74, 110, 124, 147, 152, 279, 314, 337, 346, 360])
def test_folds_of_groups_with_several_classes_keep_each_class_in_training(seed: int) -> None:
    """Of the last ten, scikit-learn puts all groups of a class into one fold."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(6, 9))
    parts = [rng.choice(3, int(rng.geometric(0.2)), p=p) for p in rng.dirichlet(np.full(3, 0.4), n)]
    groups = np.repeat([f"g{i}" for i in range(n)], [len(p) for p in parts]).astype(object)
    labels = np.unique(np.concatenate(parts), return_inverse=True)[1]
    classes = [{*labels[groups == g].tolist()} for g in sorted({*groups})]
    sides = [[set().union(*(c for i, c in enumerate(classes) if k >> i & 1 == s)) for s in (0, 1)] for k in range(2**n)]
    if not any(a == b == {*labels.tolist()} for a, b in sides):
        return  # no folds do
    for rows in group_folds(labels, groups, 2, 0):
        rest = np.setdiff1d(np.arange(len(labels)), rows)
        assert not {*groups[rows]} & {*groups[rest]}
        assert {*labels[rest]} == {*labels}
