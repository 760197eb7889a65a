"""The labeled images of a classifier: those of its label budget, and a validation split outside it if there is one."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.base.text import counted
from sslrun.config.types import Node
from sslrun.data.dataset import Dataset, load_train, split_validation
from sslrun.data.groups import not_held_out
from sslrun.data.labels import LabelBudget
from sslrun.data.options import describe, shared

Validation = Literal["inside", "extra"]
OF_EXTRA = ("dataset.val_fraction", "dataset.split_seed")  # keys that only validation=extra reads


@dataclass(frozen=True)
class Labeled:
    """The images whose labels influence a classifier.

    Attributes:
        pool: the training images from which `budget` was drawn.
        budget: the images of the label budget.
        val: the validation split outside the budget; None with `inside`.
        validation: how choices are made: by cross-validation inside the budget, or on the split outside it.
    """

    pool: Dataset
    budget: Dataset
    val: Dataset | None
    validation: Validation

    @property
    def every(self) -> Dataset:
        """Return the images of the budget, then those of the validation split."""
        return self.budget + self.val if self.val else self.budget

    @property
    def sizes(self) -> dict[str, int]:
        """Return `labels_total`, `labels_train` and `labels_val`."""
        train, val = len(self.budget), len(self.val or ())
        return {"labels_total": train + val, "labels_train": train, "labels_val": val}


def labeled_of(config: Node) -> Labeled:
    """Load the labeled images of a finetuning's config; older ones have neither `labels` nor `validation`.

    Raises: see `load_labeled`.
    """
    amounts = config.get("labels"), config["label_fraction"], config["labels_per_class"]
    validation = config.get("validation", "extra" if config["dataset"]["val_fraction"] else "auto")
    return load_labeled(config["dataset"], LabelBudget(*amounts, config["subset_seed"]), validation)


@dataclass(frozen=True)
class Pool:
    """Training images from which label budgets are drawn.

    Attributes:
        train: all training images, without a given val/.
        data: those from which a budget is drawn.
        val, validation: as in `Labeled`.
        name: of the data set, for messages.
    """

    train: Dataset
    data: Dataset
    val: Dataset | None
    validation: Validation
    name: str

    def labeled(self, budget: LabelBudget) -> Labeled:
        """Return the labeled images of a classifier; raises as `load_labeled`."""
        of = len(self.data if self.validation == "inside" else self.train)
        return Labeled(self.data, self.data.labeled(budget, self.name, of), self.val, self.validation)


def load_labeled(
    node: Node, budget: LabelBudget, validation: Validation | Literal["auto"], keys: Collection[str] = ()
) -> Labeled:
    """Load the labeled images of a classifier.

    Args:
        node: config node of the data set.
        budget: number of labels.
        validation, keys: see `load_pool`.

    Raises:
        UserError: there are no labels, only one class, a class without labels, too few images, or a key without effect.
    """
    return load_pool(node, validation, keys).labeled(budget)


def load_pool(node: Node, validation: Validation | Literal["auto"], keys: Collection[str] = ()) -> Pool:
    """Load the images from which label budgets are drawn.

    Args:
        node: config node of the data set.
        validation: `auto` is `extra` if the data set has validation images, else `inside`, which makes them training
            images.
        keys: of the overrides on the command line.

    Raises:
        UserError: there are too few images for validation, or a key without effect.
    """
    data, given = load_train(node)
    if validation == "auto":
        validation = "extra" if given else "inside"
    if validation == "inside":
        for key in OF_EXTRA:
            if key in keys:
                raise UserError(
                    f"{key} is for validation=extra; by default choices are made by cross-validation inside the label "
                    "budget: remove it, or add validation=extra"
                )
        return Pool(data, data + given if given else data, None, validation, describe(node))
    for key in OF_EXTRA if given else ():
        if key in keys:
            own = counted(len(given or ()), "validation image")
            raise UserError(f"{key} has no effect: {describe(node)} has {own} of its own; remove it")
    if given is None and shared(node).val_fraction == 0:
        raise UserError("validation=extra needs validation images: set dataset.val_fraction above 0")
    pool, val = (data, given) if given else split_validation(data, node)
    if given and given.labels is not None and data.labels is not None:
        rows = np.arange(len(data), len(data) + len(given))
        without = not_held_out(np.concatenate([data.labels.numpy(), given.labels.numpy()]), rows, data.class_names)
        if without:
            log.warning("No validation images of %s: add some, or set validation=inside", without)
    return Pool(data, pool, val, validation, describe(node))
