"""Splitting a listing that has no test split."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sslrun.base.errors import UserError
from sslrun.config.contract import Contract
from sslrun.data.sources.source import Listing, checked, take_split, with_validation

LISTING = Listing(np.zeros((20, 4, 4, 3), np.uint8), [f"{i}.png" for i in range(20)], np.arange(20) % 2, ("a", "b"))


def test_taken_splits_are_disjoint_and_no_test_image_is_unlabeled() -> None:
    train, test = take_split(LISTING, "train"), take_split(LISTING, "test")
    assert train is not None
    assert test is not None
    assert (len(train.names), len(test.names)) == (16, 4)
    assert sorted([*train.names, *test.names]) == sorted(LISTING.names)
    assert take_split(LISTING, "unlabeled") is None


@pytest.mark.parametrize("labels", [[i % 2 for i in range(20)], tuple(i % 2 for i in range(20))])
def test_labels_may_be_any_sequence(labels: list[int]) -> None:
    listing = Listing(LISTING.items, LISTING.names, labels, LISTING.class_names)  # type: ignore[arg-type]
    split, same = take_split(listing, "test"), take_split(LISTING, "test")
    assert split is not None
    assert same is not None
    assert split.names == same.names
    assert split.labels is not None
    assert same.labels is not None
    assert split.labels.tolist() == same.labels.tolist()


def test_groups_are_not_divided_by_a_taken_split() -> None:
    groups = [f"object {i // 4}" for i in range(20)]
    listing = replace(LISTING, labels=np.repeat([0, 1, 0, 1, 1], 4), groups=groups)
    train, test = take_split(listing, "train"), take_split(listing, "test")
    assert train is not None
    assert train.groups is not None
    assert test is not None
    assert test.groups is not None
    assert {*train.groups, *test.groups} == {*groups}
    assert not {*train.groups} & {*test.groups}
    assert test.groups == [groups[LISTING.names.index(n)] for n in test.names]


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (["a"] * 19, "groups must be a list with the group of each item, found 19 groups of 20 items"),
        (np.zeros(20), "groups must be a list with the group of each item, found ndarray of 20 items"),
        ([*range(20)], "groups must be names as str, found int"),
    ],
)
def test_wrong_groups_are_one_line(groups: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        checked(replace(LISTING, groups=groups), Contract("dataset", "sslrun.data.sources.digits.digits"), "train")


def test_given_validation_images_keep_their_groups() -> None:
    train = Listing(["a", "b"], ["a", "b"], np.array([0, 1]), ("x", "y"), groups=["1", "2"])
    val = Listing(["c"], ["c"], np.array([1]), ("x", "y"), groups=["3"])
    assert with_validation(train, val).groups == ["1", "2", "3"]
    assert with_validation(replace(train, groups=None), replace(val, groups=None)).groups is None
