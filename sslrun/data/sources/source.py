"""Where pictures come from: one function a data set, found by the `_target_` of its YAML.

A source is `source(split, *, root) -> Listing | None` for the splits `train`, `test` and `unlabeled`; None where the
data set has no such split. It lists files or returns arrays; it reads nothing of a split that was not asked for.
"""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from sslrun.base.errors import UserError
from sslrun.data.labels import hashed_train_test_split

SplitName = Literal["train", "test", "unlabeled"]


@dataclass(frozen=True)
class Listing:
    """One split as it lies on disk.

    Attributes:
        items: N files, or an array `N x H x W x C` (C of 1 or 3), uint8; one that may be large is a `numpy.memmap`.
        names: N names, independent of where the data set lies.
        labels: N whole numbers, or None where there are none.
        class_names: what the labels mean, for people.
        class_ids: other names that `dataset.classes` accepts, such as synset ids.
    """

    items: list[str] | np.ndarray
    names: list[str]
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    class_ids: tuple[str, ...] = ()

    def take(self, positions: np.ndarray) -> "Listing":
        """Return the pictures at these positions."""
        items = self.items[positions] if isinstance(self.items, np.ndarray) else [self.items[i] for i in positions]
        names = [self.names[i] for i in positions]
        return replace(self, items=items, names=names, labels=None if self.labels is None else self.labels[positions])


@contextmanager
def as_published(name: str, top: Path) -> Iterator[None]:
    """Say in one line that a data set's files are damaged or not what they are said to be."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError) as e:
        raise UserError(f"{top} is not as {name} is published ({e}): remove it to fetch it anew") from None


def take_split(everything: Listing, split: SplitName) -> Listing:
    assert everything.labels is not None
    train, test = hashed_train_test_split(everything.names, everything.labels)
    return everything.take(train if split == "train" else test)
