"""From a `dataset` node of the config to tensors: `load` is the only way in."""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field

from sslrun.config import Count, Fraction, Node, PositiveInt, Share, UserError, locate, parameters
from sslrun.console import log
from sslrun.data import splits
from sslrun.data.decode import Channels, Resize, decode_all
from sslrun.data.sources import Pictures, SplitName, pile

ImageSize = Annotated[int, Field(ge=8, le=1024)]
Three = Annotated[list[float], Field(min_length=3, max_length=3)]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The keys that every data set has, beside those of its source."""

    image_size: ImageSize
    resize: Resize = "crop"
    channels: Channels = "rgb"
    val_fraction: Share = 0.1
    split_seed: Count = 0
    classes: list[str] | dict[str, list[str]] | None = None
    max_images: PositiveInt | None = None
    max_bad_fraction: Fraction = 0.01
    horizontal_flip: bool = True
    mean: Three | None = None
    std: Three | None = None


@dataclass
class Dataset:
    """Decoded pictures.

    Attributes:
        images: `N x 3 x S x S`, uint8.
        labels: `N`, int64, or None.
        class_names: what the labels mean.
        names: N names of pictures.
        class_sizes: pictures of each class before validation was carved off: what a label fraction refers to.
    """

    images: torch.Tensor
    labels: torch.Tensor | None
    class_names: list[str]
    names: list[str]
    class_sizes: dict[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def take(self, positions: np.ndarray) -> "Dataset":
        """Return the pictures at these positions, copied."""
        rows = torch.from_numpy(positions)
        labels = None if self.labels is None else self.labels[rows]
        names = [self.names[i] for i in positions]
        return Dataset(self.images[rows], labels, self.class_names, names, self.class_sizes)

    def fingerprint(self) -> str:
        """Return a hash of the pixels, labels and class names."""
        digest = hashlib.sha256("\0".join(self.class_names).encode("utf-8", "surrogateescape"))
        digest.update(self.images.numpy().data)
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
    if data is None:
        raise UserError("the data set has no training split")
    if data.labels is None or options.val_fraction == 0:
        return data, None
    keep, val = splits.validation(data.labels.numpy(), options.val_fraction, options.split_seed)
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
    target = locate(node["_target_"])
    keys = {k: node[k] for k in parameters(target) if k in node}
    if isinstance(keys.get("root"), str):
        keys["root"] = os.path.expanduser(keys["root"])
    pictures = target(split, **keys)
    if pictures is None:
        return None
    options = shared(node)
    if options.classes is not None:
        pictures = _choose_classes(pictures, options.classes)
    if split == "train" and options.max_images is not None and options.max_images < len(pictures.names):
        pictures = _cap(pictures, options.max_images)
    return _decoded(pictures, options)


def load_pile(folder: str, node: Node) -> Dataset:
    """Load every picture below a folder, without labels, at the size that the data set's node asks for."""
    return _decoded(pile(Path(os.path.expanduser(folder))), shared(node))


def shared(node: Node) -> Options:
    """Return the keys of a data set's node that all data sets have."""
    names = parameters(Options)
    return Options(**{k: v for k, v in node.items() if k in names})


def describe(node: Node) -> str:
    """Return the data set's name, and its place if it is a folder of the user's."""
    name = str(node["_target_"]).rsplit(".", 1)[-1]
    return f"{name} {node['root']}" if name == "folder" else name


def _decoded(pictures: Pictures, options: Options) -> Dataset:
    names, labels = pictures.names, pictures.labels
    if isinstance(pictures.items, np.ndarray):
        images = _resized(pictures.items, options)
    else:
        array, good = decode_all(
            pictures.items, options.image_size, options.resize, options.channels, options.max_bad_fraction
        )
        images = torch.from_numpy(array).permute(0, 3, 1, 2).contiguous()
        names = [n for n, ok in zip(names, good, strict=True) if ok]
        labels = None if labels is None else labels[good]
    if not len(images):
        raise UserError("no picture is left to work with")
    if labels is None:
        return Dataset(images, None, [], names)
    return Dataset(images, torch.from_numpy(labels), list(pictures.class_names), names, splits.counts(labels))


def _resized(array: np.ndarray, options: Options) -> torch.Tensor:
    """Bring `N x H x W x C` to `N x 3 x S x S`, antialiased, a slice at a time; a square needs no crop or pad."""
    size = options.image_size
    out = torch.empty(len(array), 3, size, size, dtype=torch.uint8)
    for i in range(0, len(array), 4096):
        part = torch.from_numpy(np.ascontiguousarray(array[i : i + 4096])).permute(0, 3, 1, 2)
        if options.channels == "gray" and part.shape[1] == 3:
            weights = torch.tensor([0.299, 0.587, 0.114])
            part = (part.float() * weights[:, None, None]).sum(1, keepdim=True).round().to(torch.uint8)
        if part.shape[-2:] != (size, size):
            part = F.interpolate(part, (size, size), mode="bilinear", antialias=True)
        out[i : i + 4096] = part
    return out


def _choose_classes(pictures: Pictures, wanted: list[str] | dict[str, list[str]]) -> Pictures:
    """Keep some classes, or join several under a new name; names and ids are both understood."""
    if pictures.labels is None:
        raise UserError("dataset.classes was given, but these pictures have no labels")
    groups = wanted if isinstance(wanted, dict) else {name: [name] for name in wanted}
    position = {name: i for i, name in enumerate(pictures.class_names)}
    position |= {name: i for i, name in enumerate(pictures.class_ids)}
    unknown = [c for members in groups.values() for c in members if c not in position]
    if unknown:
        from sslrun.config import nearest

        known = list(position)
        raise UserError(
            "\n".join(f"dataset.classes: no class {c}{nearest(c, known)} There are {len(known)}" for c in unknown)
        )
    new = np.full(len(pictures.class_names), -1)
    for i, members in enumerate(groups.values()):
        for member in members:
            if new[position[member]] not in (-1, i):
                raise UserError(f"dataset.classes: {member} stands in two groups")
            new[position[member]] = i
    shown = [pictures.class_names[position[m[0]]] if isinstance(wanted, list) else g for g, m in groups.items()]
    kept = pictures.take(np.flatnonzero(new[pictures.labels] >= 0))
    assert kept.labels is not None
    return Pictures(kept.items, kept.names, new[kept.labels], tuple(shown))


def _cap(pictures: Pictures, n: int) -> Pictures:
    rng = np.random.default_rng(0)
    if pictures.labels is None:
        return pictures.take(np.sort(rng.permutation(len(pictures.names))[:n]))
    keep = splits.label_subset(pictures.labels, seed=0, fraction=n / len(pictures.names))
    if len(keep) > n:
        keep = np.sort(rng.permutation(keep)[:n])
    log.info("Using %d of %d training pictures (dataset.max_images).", len(keep), len(pictures.names))
    return pictures.take(keep)
