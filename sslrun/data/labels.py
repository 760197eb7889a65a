"""Splits, label budgets and folds: deterministic and stratified; budgets are nested."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from sslrun.base.errors import UserError
from sslrun.base.text import counted
from sslrun.data.groups import KEY, group_folds, groups_per_class, held_out


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
                "set validation=inside"
            )
        return np.setdiff1d(np.arange(len(labels)), val), val
    for c, n in counts(labels).items():
        if sizes[c] >= n:
            raise UserError(
                f"class {class_names[c]} has only {counted(n, 'training image')}, too few to split off a validation "
                "set: add images to it, exclude it with dataset.classes, or set validation=inside"
            )
    permutation = np.random.default_rng([seed, 1]).permutation(len(labels))
    val = _prefixes(permutation, labels, sizes)
    return np.setdiff1d(np.arange(len(labels)), val), val


@dataclass(frozen=True)
class LabelBudget:
    """The number of labels that may influence a classifier; by default all.

    Labels are ordered once per seed, see `label_order`. A budget is a prefix of this order, so smaller budgets are
    contained in larger ones; with `per_class` it is a prefix of each class.

    Attributes:
        total: number of labels; takes precedence over the others.
        fraction: of the labels of all training images.
        per_class: number of labels per class, or all that a smaller class has; takes precedence over `fraction`.
        seed: of the order.
    """

    total: int | None = None
    fraction: float | None = None
    per_class: int | None = None
    seed: int = 0

    @property
    def key(self) -> str:
        """Return the key of the config that sets the number of labels."""
        return (
            "labels" if self.total is not None else "label_fraction" if self.per_class is None else "labels_per_class"
        )

    @property
    def value(self) -> float:
        """Return the value of this key."""
        value = self._values[self.key]
        return 1.0 if value is None else value

    @property
    def text(self) -> str:
        """Return the budget as a setting: `labels=60`."""
        return f"{self.key}={self.value:g}" if self.key == "label_fraction" else f"{self.key}={self.value}"

    @property
    def _values(self) -> dict[str, float | None]:
        return {"labels": self.total, "labels_per_class": self.per_class, "label_fraction": self.fraction}

    def check(self, keys: Collection[str] = ()) -> None:
        """Check the label budget.

        Args:
            keys: of the overrides on the command line; they take precedence over those of YAML files.

        Raises:
            UserError: the fraction is above 1, or a key has no effect, since another one is set.
        """
        if self.fraction is not None and self.fraction > 1:
            hint = f"; for a number of labels use labels={self.fraction:g}" if self.fraction % 1 == 0 else ""
            raise UserError(f"label_fraction must be at most 1, found {self.fraction:g}{hint}")
        values = {k: v for k, v in self._values.items() if v is not None and (k, v) != ("label_fraction", 1.0)}
        given = {k: v for k, v in self._values.items() if k in keys and v is not None} or values
        if len(given) > 1:
            raise UserError(f"set only one of {', '.join(given)}")
        for key, value in given.items():
            if key != self.key:
                raise UserError(f"{key}={value:g} has no effect, since {self.text} is set, too: add {self.key}=null")

    def too_small(self, available: dict[int, int]) -> list[int]:
        """Return the classes with fewer images than `per_class`.

        Args:
            available: number of images per class.
        """
        return [c for c, n in available.items() if self.key == "labels_per_class" and n < self.value]

    def shortage(self, labels: np.ndarray, class_names: Sequence[str]) -> str | None:
        """Return in a line which classes have fewer images than `per_class`, or None.

        Args:
            labels: N labels to select from.
        """
        available = counts(labels)
        few = self.too_small(available)
        if not few:
            return None
        named = ", ".join(f"{class_names[c]} has {available[c]:,}" for c in few[:5])
        more = f" and {counted(len(few) - 5, 'more class')}" if len(few) > 5 else ""
        return f"labels_per_class={self.per_class}: {named}{more}; all of them are used"

    def size(self, labels: np.ndarray, of: int | None = None) -> int:
        """Return the number of labels.

        Args:
            labels: N labels to select from.
            of: number of labels that the fraction refers to, N by default.

        Raises:
            UserError: there are not so many labels, or fewer are wanted than there are classes.
        """
        available = counts(labels)
        if self.per_class is not None and self.total is None:
            return sum(min(n, self.per_class) for n in available.values())
        size = self.total if self.total is not None else round(self.value * (of or len(labels)))
        if self.total is not None and size > len(labels):
            raise UserError(f"{self.text}: there are only {counted(len(labels), 'label')} for training; set fewer")
        if size < len(available):
            wanted = self.text if self.total is not None else f"{self.text} is {counted(size, 'label')}, which"
            raise UserError(
                f"{wanted} is fewer than the {len(available)} classes; every class needs a label: set "
                f"labels={len(available)} or more, or use fewer classes (dataset.classes)"
            )
        return min(size, len(labels))

    def rows(self, labels: np.ndarray, of: int | None = None) -> np.ndarray:
        """Select the images whose labels are used: at least one per class, otherwise in proportion to class sizes.

        Args, raises: see `size`.

        Returns:
            Sorted positions.
        """
        order, size = label_order(labels, self.seed), self.size(labels, of)
        if self.key != "labels_per_class":
            return np.sort(order[:size])
        return np.sort(np.concatenate([order[labels[order] == c][: self.per_class] for c in counts(labels)]))


def label_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return positions in the order in which labels are used, so that every prefix is stratified.

    Within a class the order is random. First comes one image of each class, then the r-th image of a class with n
    images has the place (r - 1/2) / n.
    """
    permutation = np.random.default_rng([seed, 2]).permutation(len(labels))
    permuted = labels[permutation]
    place = np.empty(len(labels))
    for c, n in counts(labels).items():
        rank = np.arange(1, n + 1)
        place[permuted == c] = np.where(rank == 1, -1.0, (rank - 0.5) / n)
    return permutation[np.argsort(place, kind="stable")]


@dataclass(frozen=True)
class Fold:
    """Positions of the images of one training and of its validation."""

    train: np.ndarray
    val: np.ndarray


def folds(
    labels: np.ndarray, most: int, seed: int, groups: np.ndarray | None = None, limited: bool = True
) -> list[Fold]:
    """Return the folds of a stratified k-fold cross-validation, which do not divide groups.

    k is the smallest number of images (with groups, of groups) among the classes with at least two, and at most `most`.
    The only image, or group, of a class is in the training part of every fold, and does not count.

    Args:
        labels: N labels.
        most: highest k.
        groups: N names of groups, or None.
        limited: whether the smallest class limits k; if not, it is in the validation part of some folds only.

    Returns:
        An empty list if every class has only one.

    Raises:
        UserError: groups have images of several classes, so that a fold would have no training image of a class.
    """
    sizes = counts(labels) if groups is None else groups_per_class(labels, groups)
    divided = np.isin(labels, [c for c, n in sizes.items() if n > 1])
    if groups is not None:  # neither in validation: a group with images of a class that has no other group
        divided &= ~np.isin(groups.astype(str), groups[~divided].astype(str))
    rows = np.flatnonzero(divided)
    if not len(rows):
        return []
    if groups is None:
        k = min(most, *counts(labels[rows]).values()) if limited else min(most, len(rows))
        vals = _stratified(labels, rows, k, seed)
    else:
        several = [n for n in groups_per_class(labels[rows], groups[rows]).values() if n > 1] or [1]
        k = min([most, *several]) if limited else min(most, max(several))
        vals = _of_groups(labels, rows, k, seed, groups)
    return [Fold(np.setdiff1d(np.arange(len(labels)), val), val) for val in vals]


def _stratified(labels: np.ndarray, rows: np.ndarray, k: int, seed: int) -> list[np.ndarray]:
    permutation = rows[np.random.default_rng([seed, 3]).permutation(len(rows))]
    by_class = permutation[np.argsort(labels[permutation], kind="stable")]
    fold = np.arange(len(rows)) % k  # not from 0 for each class: small classes would all be in the first folds
    return [np.sort(by_class[fold == i]) for i in range(k)]


def _of_groups(labels: np.ndarray, rows: np.ndarray, k: int, seed: int, groups: np.ndarray) -> list[np.ndarray]:
    parts = group_folds(labels[rows], groups[rows], k, seed) if k > 1 else [np.arange(len(rows))]
    vals = [rows[val] for val in parts if len(val)]
    for val in vals:
        lost = set(labels.tolist()) - set(np.delete(labels, val).tolist())
        if lost:
            raise UserError(
                f"{KEY}: cross-validation with {len(vals)} folds would have no training image of "
                f"{counted(len(lost), 'class')}, since groups have images of several classes: label more groups, or "
                "set validation=extra"
            )
    return vals


def counts(labels: np.ndarray) -> dict[int, int]:
    """Return the number of images per class, sorted by class."""
    values, n = np.unique(labels, return_counts=True)
    return {int(v): int(k) for v, k in zip(values, n, strict=True)}


def _prefixes(permutation: np.ndarray, labels: np.ndarray, sizes: dict[int, int]) -> np.ndarray:
    permuted = labels[permutation]
    rows_by_class = [permutation[permuted == c][:k] for c, k in sizes.items()]
    return np.sort(np.concatenate(rows_by_class)) if rows_by_class else np.empty(0, dtype=np.int64)
