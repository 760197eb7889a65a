"""From a `dataset` node of the config to tensors: `load` is the only way in."""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.config.build import parameters
from sslrun.config.contract import Contract
from sslrun.config.types import Node
from sslrun.data.cache import Decoded, decode_all, resize_all
from sslrun.data.images import Images
from sslrun.data.labels import LabelBudget, counts, fold_rows, validation
from sslrun.data.options import Options, describe, shared
from sslrun.data.sources.folder import unlabeled_folder
from sslrun.data.sources.source import Listing, SplitName, checked


@dataclass
class Dataset:
    """Decoded pictures.

    Attributes:
        images: N of them, `3 x S x S`, uint8.
        labels: `N`, int64, or None.
        class_names: what the labels mean.
        names: N names of pictures.
        class_sizes: pictures of each class before validation was carved off: what a label fraction refers to.
    """

    images: Images
    labels: torch.Tensor | None
    class_names: list[str]
    names: list[str]
    class_sizes: dict[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def take(self, positions: np.ndarray) -> "Dataset":
        """Return the pictures at these positions."""
        labels = None if self.labels is None else self.labels[torch.from_numpy(positions)]
        names = [self.names[i] for i in positions]
        return Dataset(self.images.take(positions), labels, self.class_names, names, self.class_sizes)

    def __add__(self, other: "Dataset") -> "Dataset":
        assert self.labels is not None
        assert other.labels is not None
        labels, names = torch.cat([self.labels, other.labels]), [*self.names, *other.names]
        return Dataset(self.images + other.images, labels, self.class_names, names, self.class_sizes)

    def labeled(self, budget: LabelBudget, name: str) -> "Dataset":
        """Return the images whose labels a classifier may be trained on.

        Args:
            name: of the data set, for the messages.

        Raises:
            UserError: no labels, one class, or fewer images than the budget.
        """
        if self.labels is None:
            raise UserError(f"{name} has no labels: put the pictures into a folder a class to finetune on them")
        if len(self.class_names) < 2:
            raise UserError(f"{name} has one class ({', '.join(self.class_names)}); a classifier needs two")
        return self.within(budget)

    def within(self, budget: LabelBudget) -> "Dataset":
        """Return the images whose labels a budget allows.

        Raises:
            UserError: a class has fewer images.
        """
        assert self.labels is not None
        return self.take(budget.rows(self.labels.numpy(), self.class_sizes, self.class_names))

    def without_fold(self, k: int, n: int, seed: int) -> tuple["Dataset", "Dataset"]:
        """Return the data set without the k-th of n folds, each with its share of every class, and that fold."""
        assert self.labels is not None
        rows = fold_rows(self.labels.numpy(), k, n, seed)
        return self.take(np.setdiff1d(np.arange(len(self)), rows)), self.take(rows)

    def fewest(self) -> int:
        """Return the number of images of the smallest class."""
        assert self.labels is not None
        return min(counts(self.labels.numpy()).values())

    def fingerprint(self) -> str:
        """Return a hash of the pixels, labels and class names."""
        digest = self.images.fingerprint()
        digest.update("\0".join(self.class_names).encode("utf-8", "surrogateescape"))
        if self.labels is not None:
            digest.update(self.labels.numpy().data)
        return digest.hexdigest()[:16]


def load_train(node: Node) -> tuple[Dataset, Dataset | None]:
    """Load training and carve validation from it.

    Returns:
        Training, and validation or None (no labels, or `val_fraction=0`).
    """
    data = load(node, "train")
    options = shared(node)
    assert data is not None
    if data.labels is None or options.val_fraction == 0:
        return data, None
    keep, val = validation(data.labels.numpy(), options.val_fraction, options.split_seed)
    return data.take(keep), data.take(val)


def load_test(node: Node) -> Dataset:
    """Load the test split: `evaluate` calls this and nothing else does.

    Raises:
        UserError: it has no test split, or no labels.
    """
    data = load(node, "test")
    if data is None or data.labels is None:
        raise UserError(f"{describe(node)} has no labels, so there is nothing to evaluate on: give it a folder a class")
    return data


def load(node: Node, split: SplitName) -> Dataset | None:
    """Load one split of the data set that a config node describes.

    Returns:
        The decoded pictures, or None where there is no such split.

    Raises:
        UserError: nothing there, no pictures, unknown classes, too many unreadable files.
    """
    listing = listed(node, split)
    return None if listing is None else _decoded(listing, shared(node))


def listed(node: Node, split: SplitName) -> Listing | None:
    """Return the pictures of one split as they lie on disk, fetched if need be; None where there is no such split."""
    contract = Contract("dataset", node["_target_"])
    target = contract.callable
    keys = {k: node[k] for k in parameters(target) if k in node}
    lacking = [f"dataset.{k}" for k, (_, default) in parameters(target).items() if k not in node and default is ...]
    if lacking:
        raise UserError(f"{describe(node)} needs {', '.join(lacking)}, which an older run has not: pretrain anew")
    if isinstance(keys.get("root"), str):
        keys["root"] = os.path.expanduser(keys["root"])
    with contract.running(f"listing split {split}"):
        listing = checked(target(split, **keys), contract, split)
    options = shared(node)
    if listing is None and split == "train":
        raise UserError(f"{describe(node)} has no training split")
    if listing is None:
        return None
    if options.classes is not None and split != "unlabeled":
        listing = _choose_classes(listing, options.classes)
    if split == "train" and options.max_images is not None and options.max_images < len(listing.names):
        listing = _cap(listing, options.max_images)
    return listing


def load_unlabeled(node: Node, folder: str | None) -> list[Dataset]:
    """Load the data set's own pictures without labels, if it has some, and all below a folder, if one is given.

    The folder's pictures are brought to the size that the data set's node asks for.
    """
    own = load(node, "unlabeled")
    extra = _decoded(unlabeled_folder(Path(os.path.expanduser(folder))), shared(node)) if folder else None
    return [d for d in (own, extra) if d is not None]


def listing_hash(node: Node, split: SplitName) -> str:
    """Return a hash of the pictures of a split as they lie there, without reading them: names, sizes, times, labels.

    Of arrays, which have no files, it is a hash of their bytes; empty where there is no such split.
    """
    listing = listed(node, split)
    if listing is None:
        return ""
    digest = hashlib.sha256("\0".join([*listing.names, *listing.class_names]).encode("utf-8", "surrogateescape"))
    if isinstance(listing.items, np.ndarray):
        digest.update(np.ascontiguousarray(listing.items).data)
    else:
        for path in listing.items:
            stat = os.stat(path)
            digest.update(f"{stat.st_size} {stat.st_mtime_ns}".encode())
    if listing.labels is not None:
        digest.update(listing.labels.tobytes())
    return digest.hexdigest()[:16]


def decoded(listing: Listing, options: Options) -> Decoded:
    """Decode or resize pictures, all of them; whether too many are unreadable is for the caller to say."""
    if isinstance(listing.items, np.ndarray):
        return resize_all(listing.items, options.image_size, options.channels)
    return decode_all(listing.items, options.image_size, options.resize, options.channels)


def _decoded(listing: Listing, options: Options) -> Dataset:
    result = decoded(listing, options)
    names, labels = listing.names, listing.labels
    if result.bad:
        _judge(listing, result.bad, options.max_bad_fraction)
        good = result.good()
        names, labels = [names[i] for i in good], None if labels is None else labels[good]
    if not len(names):
        raise UserError("no picture is left to work with")
    if labels is None:
        return Dataset(result.images(), None, [], names)
    return Dataset(result.images(), torch.from_numpy(labels), list(listing.class_names), names, counts(labels))


def _judge(listing: Listing, bad: dict[int, str], max_bad_fraction: float) -> None:
    named = [f"{listing.items[i]}: {reason}" for i, reason in bad.items()]
    if len(named) > max_bad_fraction * len(listing.items):
        shown = "\n".join(named[:10]) + (f"\n... and {len(named) - 10} more" if len(named) > 10 else "")
        raise UserError(
            f"{len(named)} of {len(listing.items)} images cannot be read, more than "
            f"dataset.max_bad_fraction={max_bad_fraction:g}: mend or remove them, or raise it\n{shown}"
        )
    for line in named:
        log.warning("Skipped %s", line)


def _choose_classes(listing: Listing, wanted: list[str] | dict[str, list[str]]) -> Listing:
    """Keep some classes, or join several under a new name; names and ids are both understood."""
    if listing.labels is None:
        raise UserError("dataset.classes was given, but these pictures have no labels")
    groups = wanted if isinstance(wanted, dict) else {name: [name] for name in wanted}
    position = {name: i for i, name in enumerate(listing.class_names)}
    position |= {name: i for i, name in enumerate(listing.class_ids)}
    unknown = [c for members in groups.values() for c in members if c not in position]
    if unknown:
        from sslrun.config.names import nearest

        known = list(position)
        raise UserError(
            "\n".join(
                f"dataset.classes: no class {c}{nearest(c, known) or '.'} There are {len(known)}" for c in unknown
            )
        )
    new = np.full(len(listing.class_names), -1)
    for i, members in enumerate(groups.values()):
        for member in members:
            if new[position[member]] not in (-1, i):
                raise UserError(f"dataset.classes: {member} stands in two groups")
            new[position[member]] = i
    shown = [listing.class_names[position[m[0]]] if isinstance(wanted, list) else g for g, m in groups.items()]
    kept = listing.take(np.flatnonzero(new[listing.labels] >= 0))
    assert kept.labels is not None
    return Listing(kept.items, kept.names, new[kept.labels], tuple(shown))


def _cap(listing: Listing, n: int) -> Listing:
    rng = np.random.default_rng(0)
    if listing.labels is None:
        return listing.take(np.sort(rng.permutation(len(listing.names))[:n]))
    keep = LabelBudget(n / len(listing.names)).rows(listing.labels)
    if len(keep) > n:
        keep = np.sort(rng.permutation(keep)[:n])
    log.info("Using %d of %d training pictures (dataset.max_images).", len(keep), len(listing.names))
    return listing.take(keep)
