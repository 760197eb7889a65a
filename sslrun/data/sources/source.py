"""Sources of images: one function per data set, found by the `_target_` of its YAML.

A source is `source(split, *, root) -> Listing | None` for the splits `train`, `test` and `unlabeled`; None if the data
set has no such split. It lists files or returns arrays, and reads no other split than the requested one.
"""

import pickle
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sslrun.base.errors import UserError
from sslrun.config.contract import Contract
from sslrun.data.labels import hashed_train_test_split

SplitName = Literal["train", "test", "unlabeled"]


@dataclass(frozen=True)
class Listing:
    """The images of one split, not decoded.

    Attributes:
        items: N files, or an array `N x H x W x C` (C of 1 or 3), uint8; a large array should be a `numpy.memmap`.
        names: N unique names, which do not depend on the location of the data set.
        labels: N integers, or None.
        class_names: the name of each label.
        class_ids: alternative names that `dataset.classes` accepts, such as synset ids.
        validation: N booleans: which images of the train split are for validation; None if none are given.
        groups: N names of groups, which no split divides, such as the object of each frame; None if none are given.
    """

    items: list[str] | np.ndarray
    names: list[str]
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    class_ids: tuple[str, ...] = ()
    validation: np.ndarray | None = None
    groups: list[str] | None = None

    def take(self, positions: np.ndarray) -> "Listing":
        """Return the images at these positions."""
        items = self.items[positions] if isinstance(self.items, np.ndarray) else [self.items[i] for i in positions]
        names = [self.names[i] for i in positions]
        groups = None if self.groups is None else [self.groups[i] for i in positions]
        rows = {k: v[positions] for k in ("labels", "validation") if (v := getattr(self, k)) is not None}
        return replace(self, items=items, names=names, groups=groups, **rows)


def checked(listing: Any, contract: Contract, split: SplitName) -> Listing | None:
    """Check what a source returned for a split, and convert labels to int64.

    Raises:
        UserError: it is not a valid listing.
    """
    if listing is None:
        return None
    if not isinstance(listing, Listing):
        found = type(listing).__name__
        raise contract.broken(f"a data set must return a Listing, or None where there is no such split, found {found}")
    wrong = _wrong_items(listing) or _wrong_names(listing) or _wrong_groups(listing)
    if wrong:
        raise contract.broken(f"{wrong}, in split {split}")
    listing = replace(listing, names=list(listing.names))
    if listing.labels is None:
        return listing
    labels, names = np.asarray(listing.labels), list(listing.class_names)
    wrong = _wrong_labels(labels, len(listing.items), names) or _wrong_validation(listing.validation, len(labels))
    if not wrong and split == "train":
        trained_on = labels if listing.validation is None else labels[~listing.validation]
        present = set(trained_on.tolist())
        without = [n for i, n in enumerate(names) if i not in present]
        wrong = f"each class must have images, found none of {', '.join(without[:5])}" if without else None
    if wrong:
        raise contract.broken(f"{wrong}, in split {split}")
    return replace(listing, labels=labels.astype(np.int64, copy=False), class_names=tuple(names))


def _wrong_items(listing: Listing) -> str | None:
    items = listing.items
    if isinstance(items, np.ndarray):
        fits = items.ndim == 4 and items.shape[3] in (1, 3) and items.dtype == np.uint8
        found = f"{' x '.join(map(str, items.shape))}, {items.dtype}"
        return None if fits else f"an array of items must be N x H x W x C, uint8, with C of 1 or 3, found {found}"
    if not isinstance(items, list):
        return f"items must be a list of paths or an array, found {type(items).__name__}"
    other = next((i for i in items if not isinstance(i, str)), None)
    return None if other is None else f"items must be paths as str, found {type(other).__name__}"


def _wrong_names(listing: Listing) -> str | None:
    names = listing.names
    if len(names) != len(listing.items):
        return f"each item must have a name, found {len(names)} names of {len(listing.items)} items"
    if not len(names):
        return "there must be images, found none (None is for no such split)"
    if not all(isinstance(n, str) for n in names):
        return f"names must be str, found {type(names[0]).__name__}"
    twice = [n for n, k in Counter(names).items() if k > 1]
    return f"names must be unique, found {twice[0]!r} more than once" if twice else None


def _wrong_groups(listing: Listing) -> str | None:
    groups, n = listing.groups, len(listing.items)
    if groups is None:
        return None
    if not isinstance(groups, list) or len(groups) != n:
        found = f"{len(groups)} groups" if isinstance(groups, list) else type(groups).__name__
        return f"groups must be a list with the group of each item, found {found} of {n} items"
    other = next((g for g in groups if not isinstance(g, str)), None)
    return None if other is None else f"groups must be names as str, found {type(other).__name__}"


def _wrong_labels(labels: np.ndarray, n: int, class_names: list[str]) -> str | None:
    if labels.shape != (n,):
        return f"each item must have a label, found labels of shape {list(labels.shape)} of {n} items"
    if labels.dtype.kind not in "iu":
        return f"labels must be integers, found {labels.dtype}"
    if not class_names or not all(isinstance(c, str) for c in class_names):
        return f"class_names must name each class, found {class_names}"
    twice = [c for c, k in Counter(class_names).items() if k > 1]
    if twice:
        return f"class_names must be unique, found {twice[0]!r} more than once"
    low, high = int(labels.min()), int(labels.max())
    inside = low >= 0 and high < len(class_names)
    return None if inside else f"labels must be 0 to {len(class_names) - 1}, as class_names say, found {low} to {high}"


def _wrong_validation(validation: Any, n: int) -> str | None:
    if validation is None:
        return None
    fits = isinstance(validation, np.ndarray) and validation.dtype == bool and validation.shape == (n,)
    return None if fits and not validation.all() else f"validation must be an array of {n} booleans, not all true"


@contextmanager
def as_published(name: str, top: Path) -> Iterator[None]:
    """Report in one line that the files of a published data set are damaged or unexpected."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError) as e:
        raise UserError(f"{top} does not match the published {name} ({e}): remove it to download it again") from None


def with_validation(train: Listing, val: Listing) -> Listing:
    """Return the files of both listings, with those of the second marked as validation images."""
    assert isinstance(train.items, list)
    assert isinstance(val.items, list)
    return replace(
        train,
        items=[*train.items, *val.items],
        names=[*train.names, *val.names],
        groups=None if train.groups is None or val.groups is None else [*train.groups, *val.groups],
        labels=np.concatenate([np.asarray(train.labels), np.asarray(val.labels)]),
        validation=np.arange(len(train.items) + len(val.items)) >= len(train.items),
    )


def take_split(listing: Listing, split: SplitName) -> Listing | None:
    """Return the train or test split of a data set that has none, see `hashed_train_test_split`; None for unlabeled."""
    if split == "unlabeled":
        return None  # never the test images
    labels = np.asarray(listing.labels)
    train, test = hashed_train_test_split(listing.names, labels, groups=listing.groups)
    return replace(listing, labels=labels).take(train if split == "train" else test)
