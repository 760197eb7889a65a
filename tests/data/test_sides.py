"""Which images are on which side of the splits."""

import numpy as np
import pytest

from sslrun.base.errors import UserError
from sslrun.data.labels import folds, hashed_train_test_split
from sslrun.data.sides import Labeled

NAMES = [f"{'ab'[c]}/{k}_{i}.png" for c in range(2) for k in range(6) for i in range(5)]
LABELS = np.repeat([0, 1], 30)
GROUPS = [n.rpartition("_")[0] for n in NAMES]


def labeled(split: np.ndarray) -> Labeled:
    return Labeled(NAMES, LABELS, split, 0.2)


def held_out(groups: list[str] | None = None) -> np.ndarray:
    split = np.full(60, "train", dtype="<U5")
    split[hashed_train_test_split(NAMES, LABELS, 0.2, groups)[1]] = "test"
    return split


def test_images_that_are_held_out_by_their_names_are_split_anew_with_groups() -> None:
    data = labeled(held_out())
    assert data.is_held_out
    for groups in (None, GROUPS):
        expected = held_out(groups)
        rows = np.flatnonzero(expected == "train")
        of_rows = None if groups is None else np.array(groups, dtype=object)[rows]
        expected[rows[folds(LABELS[rows], 5, 0, of_rows)[0].val]] = "val"
        assert (expected == "val").sum() >= 5
        assert data.sides(groups).tolist() == expected.tolist()
    assert (data.split != "val").all()  # unchanged


def test_given_splits_stay_as_they_are() -> None:
    split = np.resize(["train", "train", "test"], 60)
    data = labeled(split)
    assert not data.is_held_out
    assert not labeled(np.full(60, "train")).is_held_out
    for groups in (None, GROUPS):
        sides = data.sides(groups)
        assert ((sides == "test") == (split == "test")).all()
        assert (sides == "val").any()
    split = np.resize(["train", "val", "test"], 60)
    assert labeled(split).sides(GROUPS).tolist() == split.tolist()


def test_groups_that_cannot_be_split_are_refused() -> None:
    with pytest.raises(UserError, match="each class into one group"):
        labeled(held_out()).sides([n[0] for n in NAMES])
    with pytest.raises(UserError, match="one image or one group"):
        labeled(np.resize(["train", "train", "test"], 60)).sides([n[0] for n in NAMES])
