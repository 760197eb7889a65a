"""Which images are on which side of the test split and of a fold, with and without groups."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sslrun.base.errors import UserError
from sslrun.data.labels import folds, hashed_train_test_split

FOLDS = 5  # of the training images, of which one is for validation


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

    def sides(self, groups: Sequence[str] | None) -> np.ndarray:
        """Return the side of each image: `train`, `val` or `test`.

        Without images given for validation, those of one of five folds of cross-validation are.

        Raises:
            UserError: the images cannot be split.
        """
        sides = self.split.copy()
        if groups is not None and self.is_held_out:
            sides[:] = "train"
            sides[hashed_train_test_split(self.names, self.labels, self.test_fraction, groups)[1]] = "test"
        if "val" in sides:
            return sides
        rows = np.flatnonzero(sides == "train")
        of_rows = None if groups is None else np.array(groups, dtype=object)[rows]
        parts = folds(self.labels[rows], FOLDS, 0, of_rows)
        if not parts:
            raise UserError("the training images of each class are one image or one group, which no fold can divide")
        sides[rows[parts[0].val]] = "val"
        return sides
