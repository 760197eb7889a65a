"""Data sets as tensors, loaded from the `dataset` node of a config."""

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.base.text import counted
from sslrun.base.text import listed as listed_names
from sslrun.config.build import parameters
from sslrun.config.contract import Contract
from sslrun.config.types import Node
from sslrun.data.cache import Decoded, decode_all, resize_all
from sslrun.data.depth import clipped_text
from sslrun.data.gray_range import measured
from sslrun.data.groups import KEY, not_held_out
from sslrun.data.images import Images
from sslrun.data.labels import LabelBudget, counts, validation
from sslrun.data.options import AUTO, OF_FOLDERS, Options, describe, shared
from sslrun.data.sources.folder import unlabeled_folder
from sslrun.data.sources.source import Listing, SplitName, checked
from sslrun.data.tree import normalized

LABEL_THEM = "put the images into one folder per class, or set dataset.labels"


@dataclass
class Dataset:
    """Decoded images, with labels if there are any.

    Attributes:
        images: N images, `3 x S x S`, uint8.
        labels: N labels, int64, or None.
        class_names: the name of each label.
        names: N image names.
        validation: N booleans: which images are for validation; None if the data set does not say.
        groups: N names of groups that no split divides, or None.
        range: with which gray images of more than 8 bits were decoded; None without such images.
    """

    images: Images
    labels: torch.Tensor | None
    class_names: list[str]
    names: list[str]
    validation: np.ndarray | None = None
    groups: np.ndarray | None = None
    range: list[float] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def take(self, positions: np.ndarray) -> "Dataset":
        """Return the images at these positions."""
        labels = None if self.labels is None else self.labels[torch.from_numpy(positions)]
        names = [self.names[i] for i in positions]
        images = self.images.take(positions)
        groups = None if self.groups is None else self.groups[positions]
        return Dataset(images, labels, self.class_names, names, None, groups, self.range)

    def __add__(self, other: "Dataset") -> "Dataset":
        assert self.labels is not None
        assert other.labels is not None
        labels, names = torch.cat([self.labels, other.labels]), [*self.names, *other.names]
        images = self.images + other.images
        both = self.groups is not None and other.groups is not None
        groups = np.concatenate([self.groups, other.groups]) if both else None
        return Dataset(images, labels, self.class_names, names, None, groups, self.range)

    def labeled(self, budget: LabelBudget, name: str, of: int | None = None) -> "Dataset":
        """Return the images whose labels are used to train a classifier.

        Args:
            budget: number of labels.
            name: of the data set, for the messages.
            of: number of labels that a fraction refers to, by default of all images here.

        Raises:
            UserError: there are no labels, only one class, a class without images, or too few images.
        """
        if self.labels is None:
            raise UserError(f"{name} has no labels: {LABEL_THEM}")
        if len(self.class_names) < 2:
            raise UserError(f"{name} has only one class ({', '.join(self.class_names)}); a classifier needs at least 2")
        labels = self.labels.numpy()
        if without := [n for i, n in enumerate(self.class_names) if i not in counts(labels)]:
            raise UserError(
                f"{name} has no training image of {listed_names(without)}: add some, or choose the classes with "
                "dataset.classes"
            )
        if short := budget.shortage(labels, self.class_names):
            log.info("%s.", short)
        return self.take(budget.rows(labels, of))

    def fingerprint(self) -> str:
        """Return a hash of the pixels, labels, class names and groups."""
        digest = self.images.fingerprint()
        digest.update("\0".join(self.class_names).encode("utf-8", "surrogateescape"))
        if self.labels is not None:
            digest.update(self.labels.numpy().data)
        if self.groups is not None:
            digest.update("\0".join(self.groups.tolist()).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()[:16]

    def listing_fingerprint(self) -> str:
        """Return a hash of the image names, labels and class names, which is the same for every image size."""
        digest = hashlib.sha256("\0".join([*self.names, "", *self.class_names]).encode("utf-8", "surrogateescape"))
        if self.labels is not None:
            digest.update(self.labels.numpy().data)
        return digest.hexdigest()[:16]


def load_train(node: Node) -> tuple[Dataset, Dataset | None]:
    """Load the train split: all its images except a given val/, and that val/ or None."""
    data = load(node, "train")
    assert data is not None
    if data.validation is None or not data.validation.any():
        return data, None
    given = data.validation
    return data.take(np.flatnonzero(~given)), data.take(np.flatnonzero(given))


def split_validation(data: Dataset, node: Node) -> tuple[Dataset, Dataset | None]:
    """Split `dataset.val_fraction` off for validation; that is None without labels, or with `val_fraction=0`."""
    options = shared(node)
    if data.labels is None or options.val_fraction == 0:
        return data, None
    labels = data.labels.numpy()
    train, val = validation(labels, data.class_names, options.val_fraction, options.split_seed, data.groups)
    if data.groups is not None:
        n = len(np.unique(data.groups[val]))
        log.info("Validation: %s in %s (%s).", counted(len(val), "image"), counted(n, "group"), KEY)
        if without := not_held_out(labels, val, data.class_names):
            log.warning("No validation images of %s: too few groups (%s)", without, KEY)
    return data.take(train), data.take(val)


def load_test(node: Node) -> Dataset:
    """Load the test split, which only `evaluate` uses.

    Raises:
        UserError: there is no test split, or it has no labels.
    """
    data = load(node, "test")
    if data is None or data.labels is None:
        raise UserError(f"{describe(node)} has no labels to evaluate on: {LABEL_THEM}")
    return data


def load(node: Node, split: SplitName) -> Dataset | None:
    """Load one split of the data set of a config node.

    Returns:
        The decoded images, or None if there is no such split.

    Raises:
        UserError: there is no data set or no image, a class is unknown, or too many files are unreadable.
    """
    listing = listed(node, split)
    if listing is None:
        return None
    node = node if isinstance(listing.items, np.ndarray) else with_range(node, listing)
    return _decoded(listing, shared(node), split)


def with_range(node: Node, own: Listing | None = None) -> Node:
    """Return the config node of a data set with its range of gray images of more than 8 bits.

    With `range=auto` it is measured on all files of the train and unlabeled splits; None without such images.

    Args:
        own: files to measure if there are no training images.
    """
    if shared(node).range != AUTO:
        return node
    every = {**node, "classes": None, "max_images": None}
    try:
        listings = [listed(every, "train"), listed(every, "unlabeled")]
    except UserError:
        if own is None:
            raise
        listings = [own]
    files = [f for each in listings if each and not isinstance(each.items, np.ndarray) for f in each.items]
    return {**node, "range": measured(files)}


def listed(node: Node, split: SplitName) -> Listing | None:
    """List the images of one split, downloading the data set if necessary; None if there is no such split."""
    contract = Contract("dataset", node["_target_"])
    target = contract.callable
    keys = {k: node[k] for k in parameters(target) if k in node}
    missing = [f"dataset.{k}" for k, (_, default) in parameters(target).items() if k not in node and default is ...]
    if missing:
        raise UserError(f"{describe(node)} needs {', '.join(missing)}, which an older run lacks: pretrain again")
    unknown = [k for k in OF_FOLDERS if node.get(k) is not None and k not in parameters(target)]
    if unknown:
        raise UserError(f"{describe(node)} has no key dataset.{unknown[0]}; it is one of dataset=folder")
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
    if split == "train" and options.max_images is not None:
        listing = _cap(listing, options.max_images)
    return listing


def load_unlabeled(node: Node, folder: str | None) -> list[Dataset]:
    """Load the data set's unlabeled split, if there is one, and all images below a folder, if one is given.

    The folder's images are preprocessed like those of the data set; if that has no range, they have their own.
    """
    own = load(node, "unlabeled")
    if not folder:
        return [own] if own else []
    listing = unlabeled_folder(Path(os.path.expanduser(folder)))
    extra = _decoded(listing, shared(with_range_of(listing, with_range(node))), f"unlabeled={folder}")
    return [d for d in (own, extra) if d is not None]


def with_range_of(listing: Listing, node: Node) -> Node:
    """Return a config node with the range of these files if it has none, see `with_range`."""
    if node["range"] is not None or isinstance(listing.items, np.ndarray):
        return node
    return {**node, "range": measured(listing.items)}


def listing_hash(node: Node, split: SplitName) -> str:
    """Return a hash of a split's files, without reading them: names, sizes, modification times and labels.

    For a data set of arrays it is a hash of their content. It is empty if there is no such split.
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
    """Decode or resize all images of a split; the caller checks whether too many are unreadable."""
    if isinstance(listing.items, np.ndarray):
        return resize_all(listing.items, options.image_size, options.channels)
    return decode_all(listing.items, options.image_size, options.resize, options.channels, limits_of(options))


def limits_of(options: Options) -> list[float] | None:
    """Return the range to decode with, once it is measured; None if there is none."""
    return None if isinstance(options.range, str) else options.range


def _decoded(listing: Listing, options: Options, name: str) -> Dataset:
    result, limits = decoded(listing, options), limits_of(options)
    if result.outside and limits:
        log.info("%s.", clipped_text(list(result.outside.values()), limits, len(result.array), f" in {name}"))
    names, labels, groups = listing.names, listing.labels, listing.groups
    if result.bad:
        _check_unreadable(listing, result.bad, options.max_bad_fraction)
        good = result.good()
        names, labels = [names[i] for i in good], None if labels is None else labels[good]
        groups = None if groups is None else [groups[i] for i in good]
    if not len(names):
        raise UserError("no images are left to use")
    group = None if groups is None else np.array(groups, dtype=object)
    if labels is None:
        return Dataset(result.images(), None, [], names, groups=group, range=limits)
    val = None if listing.validation is None else listing.validation[result.good()]
    return Dataset(result.images(), torch.from_numpy(labels), list(listing.class_names), names, val, group, limits)


def _check_unreadable(listing: Listing, bad: dict[int, str], max_bad_fraction: float) -> None:
    lines = [f"{listing.items[i]}: {reason}" for i, reason in bad.items()]
    if len(lines) > max_bad_fraction * len(listing.items):
        first = "\n".join(lines[:10]) + (f"\n... and {len(lines) - 10} more" if len(lines) > 10 else "")
        raise UserError(
            f"{len(lines)} of {len(listing.items)} images cannot be read, more than "
            f"dataset.max_bad_fraction={max_bad_fraction:g}: repair or remove them, or increase it\n{first}"
        )
    for line in lines:
        log.warning("Skipped %s", line)


def _choose_classes(listing: Listing, wanted: list[str] | dict[str, list[str]]) -> Listing:
    """Keep some classes, or merge several under a new name; class names and ids are both accepted."""
    if listing.labels is None:
        raise UserError("dataset.classes is set, but these images have no labels")
    groups = wanted if isinstance(wanted, dict) else {name: [name] for name in wanted}
    groups = {name: [normalized(m) for m in members] for name, members in groups.items()}
    position = {normalized(name): i for i, name in enumerate(listing.class_names)}
    position |= {normalized(name): i for i, name in enumerate(listing.class_ids)}
    unknown = [c for members in groups.values() for c in members if c not in position]
    if unknown:
        from sslrun.config.names import nearest

        known, n = list(position), len(listing.class_names)
        lines = [f"dataset.classes: no class {c}{nearest(c, known) or '.'} There are {n} classes" for c in unknown]
        raise UserError("\n".join(lines))
    new = np.full(len(listing.class_names), -1)
    for i, members in enumerate(groups.values()):
        for member in members:
            if new[position[member]] not in (-1, i):
                raise UserError(f"dataset.classes: {member} is in two groups")
            new[position[member]] = i
    names = [listing.class_names[position[m[0]]] if isinstance(wanted, list) else g for g, m in groups.items()]
    kept = listing.take(np.flatnonzero(new[listing.labels] >= 0))
    assert kept.labels is not None
    return replace(kept, labels=new[kept.labels], class_names=tuple(names), class_ids=())


def _cap(listing: Listing, n: int) -> Listing:
    """Keep n random training images, stratified if there are labels; given validation images are kept."""
    given = np.zeros(len(listing.names), dtype=bool) if listing.validation is None else listing.validation
    train = np.flatnonzero(~given)
    if n >= len(train):
        return listing
    rng = np.random.default_rng(0)
    if listing.labels is None:
        keep = train[np.sort(rng.permutation(len(train))[:n])]
    else:
        classes = len(listing.class_names)
        if n < classes:
            raise UserError(f"dataset.max_images={n} is less than one image for each of the {classes} classes")
        keep = train[LabelBudget(n).rows(listing.labels[train])]
    log.info("Using %d of %d training images (dataset.max_images).", len(keep), len(train))
    return listing.take(np.sort(np.concatenate([keep, np.flatnonzero(given)])))
