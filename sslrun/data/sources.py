"""Where pictures come from: one function a data set, found by the `_target_` of its YAML.

A source is `source(split, *, root) -> Pictures | None` for the splits `train`, `test` and `unlabeled`; None where the
data set has no such split. It lists files or returns arrays; it reads nothing of a split that was not asked for.
"""

import os
import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from sslrun.config import UserError
from sslrun.console import log
from sslrun.data import fetch
from sslrun.data.decode import find_pictures, is_picture, relative
from sslrun.data.splits import hold_out

SplitName = Literal["train", "test", "unlabeled"]


@dataclass(frozen=True)
class Pictures:
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

    def take(self, positions: np.ndarray) -> "Pictures":
        """Return the pictures at these positions."""
        items = self.items[positions] if isinstance(self.items, np.ndarray) else [self.items[i] for i in positions]
        names = [self.names[i] for i in positions]
        return replace(self, items=items, names=names, labels=None if self.labels is None else self.labels[positions])


def digits(split: SplitName, *, root: None = None) -> Pictures | None:
    """1,797 handwritten digits of 8 x 8 px that come with scikit-learn (UCI, CC BY 4.0)."""
    from sklearn.datasets import load_digits

    if split == "unlabeled":
        return None
    values, labels = load_digits(return_X_y=True)
    images = np.round(values.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    names = [f"digit-{i:04d}" for i in range(len(images))]
    return _part(Pictures(images, names, labels.astype(np.int64), tuple("0123456789")), split)


def fashion_mnist(split: SplitName, *, root: str, url: str, files: dict[str, str]) -> Pictures | None:
    """60,000 + 10,000 pictures of clothing, 28 x 28 px, grey (Xiao et al. 2017), read by torchvision."""
    from torchvision.datasets import FashionMNIST

    if split == "unlabeled":
        return None
    fetch.gzipped(Path(root, "FashionMNIST", "raw"), url, files)
    with _as_published("Fashion-MNIST", Path(root, "FashionMNIST", "raw")):
        data = FashionMNIST(root, train=split == "train")
    names = [f"{split}-{i:05d}" for i in range(len(data.data))]
    return Pictures(data.data.numpy()[..., None], names, data.targets.numpy(), tuple(data.classes))


def cifar10(split: SplitName, *, root: str, url: str, md5: str) -> Pictures | None:
    """50,000 + 10,000 photos of 32 x 32 px in 10 classes (Krizhevsky 2009)."""
    if split == "unlabeled":
        return None
    top = fetch.archive(root, "cifar-10-batches-py", url, md5)
    with _as_published("CIFAR-10", top):
        files = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
        parts = [_unpickle(top / f) for f in files]
        data = np.concatenate([np.asarray(p["data"], dtype=np.uint8) for p in parts])
        labels = np.concatenate([np.asarray(p["labels"], dtype=np.int64) for p in parts])
        words = _unpickle(top / "batches.meta")["label_names"]
        images = data.reshape(len(labels), 3, 32, 32).transpose(0, 2, 3, 1)
    classes = tuple(w.decode() if isinstance(w, bytes) else str(w) for w in words)
    return Pictures(images, [f"{split}-{i:05d}" for i in range(len(images))], labels, classes)


def stl10(split: SplitName, *, root: str, url: str, md5: str) -> Pictures | None:
    """5,000 + 8,000 photos of 96 x 96 px in 10 classes, and 100,000 without labels (Coates et al. 2011)."""
    top = fetch.archive(root, "stl10_binary", url, md5)
    with _as_published("STL-10", top):
        planes = np.memmap(top / f"{split}_X.bin", dtype=np.uint8, mode="r").reshape(-1, 3, 96, 96)
        images = planes.transpose(0, 3, 2, 1)  # each plane lies there column after column
        names = [f"{split}-{i:06d}" for i in range(len(images))]
        if split == "unlabeled":
            return Pictures(images, names)
        labels = np.fromfile(top / f"{split}_y.bin", dtype=np.uint8).astype(np.int64) - 1
        classes = tuple((top / "class_names.txt").read_text().split())
        if len(labels) != len(images) or labels.max() >= len(classes):
            raise ValueError(f"{len(images)} pictures, {len(labels)} labels, {len(classes)} classes")
    return Pictures(images, names, labels, classes)


@contextmanager
def _as_published(name: str, top: Path) -> Iterator[None]:
    """Say in one line that a data set's files are damaged or not what they are said to be."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError) as e:
        raise UserError(f"{top} is not as {name} is published ({e}): remove it to fetch it anew") from None


class _ArraysOnly(pickle.Unpickler):
    """Reads what CIFAR's pickles hold (lists, bytes, NumPy arrays) and refuses everything that could run code."""

    def find_class(self, module: str, name: str) -> object:
        if module.split(".")[0] == "numpy" and name in (
            "_reconstruct",
            "ndarray",
            "dtype",
            "scalar",
            "_frombuffer",
        ):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"refused to load {module}.{name}")


def _unpickle(path: Path) -> dict:
    with path.open("rb") as file:
        read = _ArraysOnly(file, encoding="latin1").load()
    return {k.decode() if isinstance(k, bytes) else k: v for k, v in read.items()}


def flowers(split: SplitName, *, root: str, url: str, md5: str) -> Pictures | None:
    """Five classes of flower photos: TensorFlow's `flower_photos/<class>`, or Kaggle's `flowers/<class>` in `root`."""
    if split == "unlabeled":
        return None
    below = next((Path(root, n) for n in ("flower_photos", "flowers") if Path(root, n).is_dir()), None)
    if below is None and not _class_folders(Path(root)):
        below = fetch.archive(root, "flower_photos", url, md5)
    return folder(split, root=str(below or root))


def flowers102(split: SplitName, *, root: str, url: str, files: dict[str, str]) -> Pictures | None:
    """102 classes of flower photos, 2,040 + 6,149 (Nilsback & Zisserman 2008), read by torchvision.

    Its official training and validation parts, 10 + 10 of each class, are our training split.
    """
    from torchvision.datasets import Flowers102

    if split == "unlabeled":
        return None
    top = Path(root, "flowers-102")
    packed, *lists = files
    for i, name in enumerate(lists):
        more = [n for n in [*lists[i + 1 :], packed] if not (top / n).exists() and not (top / "jpg").exists()]
        fetch.file(top / name, url + name, files[name], more)
    fetch.archive(str(top), "jpg", url + packed, files[packed])
    with _as_published("Flowers-102", top):
        parts = [Flowers102(root, split=s) for s in (("train", "val") if split == "train" else ("test",))]
    found = sorted((str(f), c) for p in parts for f, c in zip(p._image_files, p._labels, strict=True))
    names = [relative(f, top) for f, _ in found]
    return Pictures([f for f, _ in found], names, np.array([c for _, c in found]), tuple(Flowers102.classes))


def tinyimagenet(split: SplitName, *, root: str, url: str, md5: str) -> Pictures | None:
    """200 classes of 500 photos, 64 x 64 px; the 10,000 validation photos are our test, for the official test has
    no labels (Stanford CS231n).
    """
    if split == "unlabeled":
        return None
    top = fetch.archive(root, "tiny-imagenet-200", url, md5)
    with _as_published("Tiny ImageNet", top):
        ids = sorted((top / "wnids.txt").read_text().split())
        words = dict(line.split("\t", 1) for line in (top / "words.txt").read_text().splitlines() if "\t" in line)
        if split == "train":
            folders = [(top / "train" / wnid / "images", wnid) for wnid in ids]
            files = [(f"{f}{os.sep}{name}", wnid) for f, wnid in folders for name in sorted(os.listdir(f))]
        else:
            rows = [line.split("\t") for line in (top / "val" / "val_annotations.txt").read_text().splitlines()]
            files = sorted((str(top / "val" / "images" / row[0]), row[1]) for row in rows)
        files = [(f, wnid) for f, wnid in files if is_picture(f)]
        position = {wnid: i for i, wnid in enumerate(ids)}
        labels = np.array([position[wnid] for _, wnid in files], dtype=np.int64)
    names = [relative(f, top) for f, _ in files]
    classes = _distinct([words.get(wnid, wnid).split(",")[0] for wnid in ids], ids)
    return Pictures([f for f, _ in files], names, labels, classes, tuple(ids))


def _distinct(words: list[str], ids: list[str]) -> tuple[str, ...]:
    return tuple(w if words.count(w) == 1 else f"{w} ({i})" for w, i in zip(words, ids, strict=True))


TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "val", "valid", "validation")


def folder(split: SplitName, *, root: str) -> Pictures | None:
    """Any folder of pictures.

    `train/` and `test/` (or `val/`) with a folder a class; one folder a class, of which a fifth is held out as test;
    or pictures without labels, in any order of folders, for pretraining. `unlabeled/` beside `train/` adds pictures
    without labels to pretraining.

    Raises:
        UserError: no such folder, or no pictures in it.
    """
    top = Path(root)
    if not top.is_dir():
        raise UserError(f"{top}: no such folder; if it has moved, say dataset.root=...")
    train, test = _named(top, TRAIN_FOLDERS), _named(top, TEST_FOLDERS)
    if train is None:
        return None if split == "unlabeled" else _one_folder_a_class(_unwrapped(top), split)
    if split == "unlabeled":
        return pile(top / "unlabeled") if (top / "unlabeled").is_dir() else None
    if test is None:
        return _one_folder_a_class(train, split)
    classes = _class_folders(train)
    if split == "test" and classes:
        strange = sorted(set(_class_folders(test)) - set(classes))
        if strange:
            raise UserError(f"{test} has classes that {train} has not: {', '.join(strange[:5])}")
    return _labelled(test if split == "test" else train, classes)


def _named(top: Path, names: tuple[str, ...]) -> Path | None:
    """Return the folder in `top` that has the first of these names, in upper or lower case."""
    folders = {e.name.lower(): e for e in sorted(top.iterdir()) if e.is_dir()}
    return next((folders[n] for n in names if n in folders), None)


def pile(top: Path) -> Pictures:
    """Every picture in and below a folder, without labels.

    Raises:
        UserError: no such folder, or no pictures in it.
    """
    if not top.is_dir():
        raise UserError(f"{top}: no such folder")
    return _labelled(top, [])


def _one_folder_a_class(top: Path, split: SplitName) -> Pictures | None:
    found = _labelled(top, _class_folders(top))
    if found.labels is None:
        return found if split == "train" else None
    return _part(found, split)


def _part(everything: Pictures, split: SplitName) -> Pictures:
    assert everything.labels is not None
    train, test = hold_out(everything.names, everything.labels)
    return everything.take(train if split == "train" else test)


def _class_folders(top: Path) -> list[str]:
    """Return the class folders' names, sorted; none where pictures lie in `top` itself or only deeper below."""
    if not top.is_dir():
        return []
    here = [e for e in sorted(top.iterdir()) if not e.name.startswith(".")]
    folders = [e for e in here if e.is_dir()]
    names = {e.name for e in folders if _has_picture(e.iterdir())}
    stray = [e.name for e in here if e.is_file() and is_picture(e.name)]
    if stray:
        if names:
            log.warning(
                "%s holds pictures (%s, ...) beside folders of pictures, so all are taken without labels; "
                "move them away to have a class a folder.", top, stray[0],
            )  # fmt: skip
        return []
    for e in folders:
        if not names or e.name in names:
            continue
        if {d.name for d in e.iterdir() if d.is_dir()} & names:
            log.warning("Left out %s: it holds the same classes once more.", e)
        elif find_pictures(e):
            names.add(e.name)
    return sorted(names)


def _has_picture(entries: Iterable[Path]) -> bool:
    return any(is_picture(e.name) and not e.name.startswith(".") and e.is_file() for e in entries)


def _unwrapped(top: Path) -> Path:
    """Step into a folder that holds nothing but one folder of class folders, as unpacked archives often do."""
    here = [e for e in top.iterdir() if not e.name.startswith(".") and (e.is_dir() or is_picture(e.name))]
    if len(here) == 1 and here[0].is_dir() and _class_folders(here[0]):
        log.info("The classes lie in %s.", here[0])
        return here[0]
    return top


def _labelled(top: Path, classes: list[str]) -> Pictures:
    if classes:
        found = [(p, i) for i, c in enumerate(classes) if (top / c).is_dir() for p in find_pictures(top / c)]
        files, labels = [p for p, _ in found], np.array([i for _, i in found], dtype=np.int64)
    else:
        files, labels = find_pictures(top), None
    if not files:
        raise UserError(f"no pictures in {top} (looked for .jpg .png .webp .bmp .gif .tif)")
    return Pictures(files, [relative(f, top) for f in files], labels, tuple(classes))
