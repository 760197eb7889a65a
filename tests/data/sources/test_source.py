"""Splitting a listing that has no test split."""

import numpy as np
import pytest

from sslrun.data.sources.source import Listing, take_split

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
