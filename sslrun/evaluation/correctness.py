"""Which test images a classifier predicts correctly."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sslrun.base.errors import UserError

PREDICTIONS = "predictions.npz"


@dataclass(frozen=True)
class Correctness:
    """The predictions of a classifier on the N test images.

    Attributes:
        correct: N booleans.
        names: N names of the images.
        groups: N group numbers from 0, or None; older evaluations have none.
    """

    correct: np.ndarray
    names: np.ndarray
    groups: np.ndarray | None

    def same_images(self, other: "Correctness") -> bool:
        """Return whether both were evaluated on the same images in the same order."""
        return np.array_equal(self.names, other.names)


def read_correctness(evaluated: Path) -> Correctness | None:
    """Read the predictions of an evaluation; None if it has no file of them.

    Raises:
        UserError: the file cannot be read.
    """
    path = evaluated / PREDICTIONS
    if not path.is_file():
        return None
    try:
        with np.load(path) as file:
            correct = file["probabilities"].argmax(1) == file["labels"]
            groups = np.unique(file["groups"], return_inverse=True)[1] if "groups" in file else None
            return Correctness(correct, file["names"], groups)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
