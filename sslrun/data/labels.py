"""Splits and label subsets: deterministic, stratified, nested.

A class is shuffled once, by a seed; a part of it is always a prefix of that order. So a subset of 1 % lies inside
that of 10 %, for every class.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from sslrun.base.errors import UserError


def hashed_train_test_split(
    names: Sequence[str], labels: np.ndarray, fraction: float = 0.2
) -> tuple[np.ndarray, np.ndarray]:
    """Split a data set that comes without a test split: `fraction` of each class, by the hash of the names.

    The hash makes it the same on every machine, and a picture that is added later moves almost none of the others.

    Args:
        names: N names, each unique and independent of where the data set lies.
        labels: N whole numbers.

    Returns:
        The positions of train and of test, both sorted.
    """
    hashes = [hashlib.sha256(n.encode("utf-8", "surrogateescape")).digest() for n in names]
    permutation = np.argsort(np.array(hashes, dtype="S32"), kind="stable")
    test = _prefixes(permutation, labels, {int(c): round(fraction * n) for c, n in counts(labels).items()})
    return np.setdiff1d(np.arange(len(labels)), test), test


def validation_sizes(sizes: dict[int, int], fraction: float) -> dict[int, int]:
    """Return how many images of each class validation takes: of a fraction above 0 at least one."""
    return {c: max(1, round(fraction * n)) if fraction > 0 else 0 for c, n in sizes.items()}


def validation(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Carve a stratified validation split from training.

    Returns:
        The positions of what stays in training and of validation, both sorted.

    Raises:
        UserError: a class would be left without a training picture.
    """
    wanted = validation_sizes(counts(labels), fraction)
    for c, n in counts(labels).items():
        if wanted[c] >= n:
            raise UserError(
                f"a class has only {n} training picture{'s' * (n > 1)}, too few to carve validation from: add "
                "pictures to it, leave it out with dataset.classes, or say dataset.val_fraction=0"
            )
    permutation = np.random.default_rng([seed, 1]).permutation(len(labels))
    val = _prefixes(permutation, labels, wanted)
    return np.setdiff1d(np.arange(len(labels)), val), val


@dataclass(frozen=True)
class LabelBudget:
    """How many labels of training may be used: a fraction, or so many of each class; with neither all.

    Attributes:
        fraction: of each class's size, that of validation included; at least one image of each class.
        per_class: of each class, whatever the fraction.
        seed: of the subset; smaller subsets of one seed lie within the larger.
    """

    fraction: float | None = None
    per_class: int | None = None
    seed: int = 0

    @property
    def value(self) -> float:
        """Return the number of labels of each class, or the fraction of all."""
        return self.per_class if self.per_class is not None else 1.0 if self.fraction is None else self.fraction

    def check(self, keys: Collection[str] = ()) -> None:
        """Refuse an amount of labels that cannot be meant.

        Args:
            keys: that stand on the command line.

        Raises:
            UserError: more than all of them, or two amounts at once.
        """
        if self.fraction is not None and self.fraction > 1:
            raise UserError(
                f"label_fraction must be at most 1, found {self.fraction:g}; for a number of labels say "
                "labels_per_class"
            )
        if {"label_fraction", "labels_per_class"} <= set(keys):
            raise UserError("say label_fraction or labels_per_class, not both")

    def short(self, available: dict[int, int], class_sizes: dict[int, int]) -> list[int]:
        """Return the classes with fewer images than `per_class`, or of which the fraction is less than one image.

        Args:
            available: images of each class, without validation.
            class_sizes: images of each class, with validation.
        """
        if self.per_class is not None:
            return [c for c, n in available.items() if n < self.per_class]
        return [c for c in available if self.fraction is not None and self.fraction * class_sizes[c] < 1]

    def rows(
        self, labels: np.ndarray, class_sizes: dict[int, int] | None = None, class_names: Sequence[str] = ()
    ) -> np.ndarray:
        """Choose the images whose labels may be used: stratified, at least one a class, nested for one seed.

        Args:
            labels: N labels to choose from.
            class_sizes: what the fraction refers to, by default the counts in `labels`.
            class_names: for the messages.

        Returns:
            Sorted positions.

        Raises:
            UserError: a class has fewer images than `per_class`.
        """
        available = counts(labels)
        sizes = class_sizes or available
        if self.per_class is not None:
            short = self.short(available, sizes)
            if short:
                named = ", ".join(f"{class_names[c] if class_names else c} has {available[c]}" for c in short[:5])
                raise UserError(
                    f"labels_per_class={self.per_class} is more than there are: {named} (validation set apart)"
                )
            wanted = dict.fromkeys(available, self.per_class)
        else:
            wanted = {c: min(n, max(1, round(self.value * sizes[c]))) for c, n in available.items()}
        permutation = np.random.default_rng([self.seed, 2]).permutation(len(labels))
        return _prefixes(permutation, labels, wanted)


def fold_rows(labels: np.ndarray, k: int, n: int, seed: int) -> np.ndarray:
    """Return the sorted positions of the k-th of n parts, each of which has its share of every class.

    Raises:
        UserError: there is no such part.
    """
    if not 0 <= k < n:
        raise UserError(f"fold=[{k},{n}]: the first number must be from 0 to {n - 1}")
    permutation = np.random.default_rng([seed, 3]).permutation(len(labels))
    permuted = labels[permutation]
    first = 0
    rows_by_class = []
    for c, size in counts(labels).items():
        place = np.arange(first, first + size)  # counted on from class to class, so that small classes take turns
        rows_by_class.append(permutation[permuted == c][place % n == k])
        first += size
    return np.sort(np.concatenate(rows_by_class))


def counts(labels: np.ndarray) -> dict[int, int]:
    """Return how many there are of each class, in the order of the classes."""
    values, n = np.unique(labels, return_counts=True)
    return {int(v): int(k) for v, k in zip(values, n, strict=True)}


def _prefixes(permutation: np.ndarray, labels: np.ndarray, wanted: dict[int, int]) -> np.ndarray:
    permuted = labels[permutation]
    rows_by_class = [permutation[permuted == c][:k] for c, k in wanted.items()]
    return np.sort(np.concatenate(rows_by_class)) if rows_by_class else np.empty(0, dtype=np.int64)
