"""Splits and label subsets: deterministic, stratified, nested.

The images are shuffled once per seed, and a subset is a prefix of each class in that permutation. So the 1 % subset
is contained in the 10 % subset, for every class.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from sslrun.base.errors import UserError
from sslrun.base.text import counted
from sslrun.data.groups import KEY, group_folds, held_out


def hashed_train_test_split(
    names: Sequence[str], labels: np.ndarray, fraction: float = 0.2, groups: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Split a data set that has no test split: `fraction` of each class becomes test, by the hash of the names.

    The hash makes the split the same on every machine; adding an image later moves almost none of the others.

    Args:
        names: N unique names, which do not depend on the location of the data set.
        labels: N integers.
        groups: N names of groups that are not divided, see `held_out`; then the names are not used.

    Returns:
        Sorted positions of train and of test.

    Raises:
        UserError: no class has a group to hold out.
    """
    targets = {c: round(fraction * n) for c, n in counts(labels).items()}
    if groups is not None and fraction < 1:
        test = held_out(labels, groups, targets, salt="")
        if not len(test):
            raise UserError(f"{KEY} puts the images of each class into one group; a test split needs at least two")
        return np.setdiff1d(np.arange(len(labels)), test), test
    hashes = [hashlib.sha256(n.encode("utf-8", "surrogateescape")).digest() for n in names]
    permutation = np.argsort(np.array(hashes, dtype="S32"), kind="stable")
    test = _prefixes(permutation, labels, targets)
    return np.setdiff1d(np.arange(len(labels)), test), test


def validation_sizes(sizes: dict[int, int], fraction: float) -> dict[int, int]:
    """Return the number of validation images per class, at least one if the fraction is above 0."""
    return {c: max(1, round(fraction * n)) if fraction > 0 else 0 for c, n in sizes.items()}


def validation(
    labels: np.ndarray,
    class_names: Sequence[str],
    fraction: float,
    seed: int,
    groups: Sequence[str] | np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Split off a stratified validation set from training.

    Args:
        class_names: for the message.
        groups: N names of groups that are not divided; a class with one group then has no validation images.

    Returns:
        Sorted positions of the remaining training images and of validation.

    Raises:
        UserError: a class would have no training images left, or no class has a group for validation.
    """
    sizes = validation_sizes(counts(labels), fraction)
    if groups is not None and fraction > 0:
        val = held_out(labels, groups, sizes, salt=f"{seed} ")
        if not len(val):
            raise UserError(
                f"{KEY} puts the training images of each class into one group; a validation set needs at least two: "
                "set dataset.val_fraction=0 to train without"
            )
        return np.setdiff1d(np.arange(len(labels)), val), val
    for c, n in counts(labels).items():
        if sizes[c] >= n:
            raise UserError(
                f"class {class_names[c]} has only {counted(n, 'training image')}, too few to split off a validation "
                "set: add images to it, exclude it with dataset.classes, or set dataset.val_fraction=0"
            )
    permutation = np.random.default_rng([seed, 1]).permutation(len(labels))
    val = _prefixes(permutation, labels, sizes)
    return np.setdiff1d(np.arange(len(labels)), val), val


@dataclass(frozen=True)
class LabelBudget:
    """The number of training labels to use: a fraction, or a number per class; by default all.

    Attributes:
        fraction: of each class, counted before validation is split off; at least one image per class.
        per_class: number of labels per class, or all that a smaller class has; takes precedence over `fraction`.
        seed: of the subset; for one seed, smaller subsets are contained in larger ones.
    """

    fraction: float | None = None
    per_class: int | None = None
    seed: int = 0

    @property
    def value(self) -> float:
        """Return the number of labels per class if it is set, else the fraction."""
        return self.per_class if self.per_class is not None else 1.0 if self.fraction is None else self.fraction

    def check(self, keys: Collection[str] = ()) -> None:
        """Check the label budget.

        Args:
            keys: of the overrides on the command line.

        Raises:
            UserError: the fraction is above 1, or both a fraction and a number per class are set.
        """
        if self.fraction is not None and self.fraction > 1:
            raise UserError(
                f"label_fraction must be at most 1, found {self.fraction:g}; for a number of labels use "
                "labels_per_class"
            )
        if {"label_fraction", "labels_per_class"} <= set(keys):
            raise UserError("set label_fraction or labels_per_class, not both")

    def too_small(self, available: dict[int, int], class_sizes: dict[int, int]) -> list[int]:
        """Return the classes with fewer images than `per_class`, or whose fraction is less than one image.

        Args:
            available: number of images per class, without validation.
            class_sizes: number of images per class, with validation.
        """
        if self.per_class is not None:
            return [c for c, n in available.items() if n < self.per_class]
        return [c for c in available if self.fraction is not None and self.fraction * class_sizes[c] < 1]

    def shortage(self, labels: np.ndarray, class_names: Sequence[str]) -> str | None:
        """Return in a line which classes have fewer images than `per_class`, or None.

        Args:
            labels: N labels to select from.
        """
        available = counts(labels)
        few = self.too_small(available, available) if self.per_class is not None else []
        if not few:
            return None
        named = ", ".join(f"{class_names[c]} has {available[c]:,}" for c in few[:5])
        more = f" and {counted(len(few) - 5, 'more class')}" if len(few) > 5 else ""
        return f"labels_per_class={self.per_class}: {named}{more} (without validation); all of them are used"

    def rows(self, labels: np.ndarray, class_sizes: dict[int, int] | None = None) -> np.ndarray:
        """Select the images whose labels are used: stratified, at least one per class, nested for one seed.

        Args:
            labels: N labels to select from.
            class_sizes: number of images per class that the fraction refers to; by default the counts in `labels`.

        Returns:
            Sorted positions.
        """
        available = counts(labels)
        sizes = class_sizes or available
        if self.per_class is not None:
            subset = dict.fromkeys(available, self.per_class)
        else:
            subset = {c: min(n, max(1, round(self.value * sizes[c]))) for c, n in available.items()}
        permutation = np.random.default_rng([self.seed, 2]).permutation(len(labels))
        return _prefixes(permutation, labels, subset)


def fold_rows(labels: np.ndarray, k: int, n: int, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Return the sorted positions of the k-th of n folds, stratified by class; k counts from 0.

    Args:
        groups: N names of groups that are not divided.

    Raises:
        UserError: there is no such fold, or there are too few groups.
    """
    if not 0 <= k < n:
        raise UserError(f"fold=[{k},{n}]: the first number must be from 0 to {n - 1}")
    if groups is not None:
        try:
            return group_folds(labels, groups, n, seed)[k]
        except ValueError:
            raise UserError(f"fold=[{k},{n}]: too few groups ({KEY}) or images for {n} folds") from None
    permutation = np.random.default_rng([seed, 3]).permutation(len(labels))
    permuted = labels[permutation]
    first = 0
    rows_by_class = []
    for c, size in counts(labels).items():
        position = np.arange(first, first + size)  # not from 0 for each class: small classes would all be in fold 0
        rows_by_class.append(permutation[permuted == c][position % n == k])
        first += size
    return np.sort(np.concatenate(rows_by_class))


def counts(labels: np.ndarray) -> dict[int, int]:
    """Return the number of images per class, sorted by class."""
    values, n = np.unique(labels, return_counts=True)
    return {int(v): int(k) for v, k in zip(values, n, strict=True)}


def _prefixes(permutation: np.ndarray, labels: np.ndarray, sizes: dict[int, int]) -> np.ndarray:
    permuted = labels[permutation]
    rows_by_class = [permutation[permuted == c][:k] for c, k in sizes.items()]
    return np.sort(np.concatenate(rows_by_class)) if rows_by_class else np.empty(0, dtype=np.int64)
