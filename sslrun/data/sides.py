"""Which images are on which side of the splits, with and without groups."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sslrun.data.labels import hashed_train_test_split, validation
from sslrun.data.options import Options


@dataclass(frozen=True)
class Labeled:
    """The images with labels of all splits together.

    Attributes:
        names: N names, by which test images are held out.
        labels: N integers.
        split: `train`, `val` or `test` of each image; `val` only if the data set itself says which images these are.
        test_fraction: fraction of each class that is held out if the data set has no test split.
    """

    names: list[str]
    labels: np.ndarray
    split: np.ndarray
    test_fraction: float

    @property
    def is_held_out(self) -> bool:
        """Whether the test images are held out by their names; else the data set has its own."""
        test = hashed_train_test_split(self.names, self.labels, self.test_fraction)[1]
        return len(test) > 0 and np.array_equal(test, np.flatnonzero(self.split == "test"))

    def sides(self, options: Options, groups: Sequence[str] | None) -> np.ndarray:
        """Split as training does, and return the side of each image: `train`, `val` or `test`.

        Raises:
            UserError: the images cannot be split.
        """
        sides = self.split.copy()
        if groups is not None and self.is_held_out:
            sides[:] = "train"
            sides[hashed_train_test_split(self.names, self.labels, self.test_fraction, groups)[1]] = "test"
        if "val" in sides:
            return sides
        rows, names = np.flatnonzero(sides == "train"), [str(c) for c in range(self.labels.max() + 1)]
        of_rows = None if groups is None else [groups[i] for i in rows.tolist()]
        val = validation(self.labels[rows], names, options.val_fraction, options.split_seed, of_rows)[1]
        sides[rows[val]] = "val"
        return sides
