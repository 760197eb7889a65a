"""Where pictures come from: one function a data set, found by the `_target_` of its YAML.

A source is `source(split, *, root) -> Pictures | None` for the splits `train`, `test` and `unlabeled`; None where the
data set has no such split. It lists files or returns arrays; it reads nothing of a split that was not asked for.
"""

import pickle
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from sslrun.config import UserError
from sslrun.console import log
from sslrun.data import fetch
from sslrun.data.decode import find_pictures, is_picture
from sslrun.data.splits import hold_out

SplitName = Literal["train", "test", "unlabeled"]


@dataclass(frozen=True)
class Pictures:
    """One split as it lies on disk.

    Attributes:
        items: N files, or an array `N x H x W x C` (C of 1 or 3), uint8.
        names: N names, independent of where the data set lies.
        labels: N whole numbers, or None where there are none.
        class_names: what the labels mean, for people.
        class_ids: other names that `dataset.classes` accepts, such as synset ids.
    """

    items: list[Path] | np.ndarray
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


def fashion_mnist(split: SplitName, *, root: str) -> Pictures | None:
    """60,000 + 10,000 pictures of clothing, 28 x 28 px, grey (Xiao et al. 2017, MIT)."""
    from torchvision.datasets import FashionMNIST

    if split == "unlabeled":
        return None
    with fetch.explained("Fashion-MNIST", FashionMNIST.mirrors[0], Path(root, "FashionMNIST", "raw")):
        data = FashionMNIST(root, train=split == "train", download=True)
    names = [f"{split}-{i:05d}" for i in range(len(data.data))]
    return Pictures(data.data.numpy()[..., None], names, data.targets.numpy(), tuple(data.classes))


def cifar10(split: SplitName, *, root: str) -> Pictures | None:
    """50,000 + 10,000 photos of 32 x 32 px in 10 classes (Krizhevsky 2009)."""
    if split == "unlabeled":
        return None
    folder = fetch.archive(
        root,
        "cifar-10-batches-py",
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
    )
    files = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
    parts = [_unpickle(folder / f) for f in files]
    data = np.concatenate([np.asarray(p["data"], dtype=np.uint8) for p in parts])
    labels = np.concatenate([np.asarray(p["labels"], dtype=np.int64) for p in parts])
    words = _unpickle(folder / "batches.meta")["label_names"]
    classes = tuple(w.decode() if isinstance(w, bytes) else str(w) for w in words)
    images = data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Pictures(images, [f"{split}-{i:05d}" for i in range(len(images))], labels, classes)


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
    try:
        with path.open("rb") as file:
            read = _ArraysOnly(file, encoding="latin1").load()
        return {k.decode() if isinstance(k, bytes) else k: v for k, v in read.items()}
    except (OSError, pickle.UnpicklingError, EOFError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not as CIFAR-10 has it ({error}): remove its folder to fetch it anew") from None


def flowers(split: SplitName, *, root: str) -> Pictures | None:
    """Five classes of flower photos: TensorFlow's `flower_photos/<class>`, or Kaggle's `flowers/<class>` in `root`."""
    if split == "unlabeled":
        return None
    below = next((Path(root, n) for n in ("flower_photos", "flowers") if Path(root, n).is_dir()), None)
    if below is None and not _class_folders(Path(root)):
        below = fetch.archive(
            root,
            "flower_photos",
            "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz",
            md5="6f87fb78e9cc9ab41eff2015b380011d",
        )
    return folder(split, root=str(below or root))


def tinyimagenet(split: SplitName, *, root: str) -> Pictures | None:
    """200 classes of 500 photos, 64 x 64 px; the 10,000 validation photos are our test, for the official test has
    no labels (Stanford CS231n).
    """
    if split == "unlabeled":
        return None
    top = fetch.archive(
        root,
        "tiny-imagenet-200",
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        md5="90528d7ca1a48142e341f4ef8d21d0de",
    )
    try:
        ids = sorted((top / "wnids.txt").read_text().split())
        words = dict(line.split("\t", 1) for line in (top / "words.txt").read_text().splitlines() if "\t" in line)
        if split == "train":
            files = [(p, wnid) for wnid in ids for p in sorted((top / "train" / wnid / "images").iterdir())]
        else:
            rows = [line.split("\t") for line in (top / "val" / "val_annotations.txt").read_text().splitlines()]
            files = sorted((top / "val" / "images" / row[0], row[1]) for row in rows)
    except (OSError, IndexError, ValueError) as error:
        raise UserError(f"{top} is not as Tiny ImageNet has it ({error}): remove it to fetch it anew") from None
    files = [(p, wnid) for p, wnid in files if is_picture(p.name)]
    labels = np.array([ids.index(wnid) for _, wnid in files], dtype=np.int64)
    names = [p.relative_to(top).as_posix() for p, _ in files]
    classes = _distinct([words.get(wnid, wnid).split(",")[0] for wnid in ids], ids)
    return Pictures([p for p, _ in files], names, labels, classes, tuple(ids))


def _distinct(words: list[str], ids: list[str]) -> tuple[str, ...]:
    return tuple(w if words.count(w) == 1 else f"{w} ({i})" for w, i in zip(words, ids, strict=True))


TEST_FOLDERS = ("test", "val", "valid", "validation")


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
    if not (top / "train").is_dir():
        return None if split == "unlabeled" else _one_folder_a_class(_unwrapped(top), split)
    test = next((top / n for n in TEST_FOLDERS if (top / n).is_dir()), None)
    if split == "unlabeled":
        return pile(top / "unlabeled") if (top / "unlabeled").is_dir() else None
    if test is None:
        return _one_folder_a_class(top / "train", split)
    classes = _class_folders(top / "train")
    if split == "test" and classes:
        strange = sorted(set(_class_folders(test)) - set(classes))
        if strange:
            raise UserError(f"{test} has classes that {top / 'train'} has not: {', '.join(strange[:5])}")
    return _labelled(test if split == "test" else top / "train", classes)


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
    return Pictures(files, [p.relative_to(top).as_posix() for p in files], labels, tuple(classes))
