"""CIFAR-10."""

import pickle
from pathlib import Path

import numpy as np

from sslrun.data import fetch
from sslrun.data.sources.source import Listing, SplitName, as_published


def cifar10(split: SplitName, *, root: str, url: str, md5: str) -> Listing | None:
    """50,000 + 10,000 photos of 32 x 32 px in 10 classes (Krizhevsky 2009)."""
    if split == "unlabeled":
        return None
    top = fetch.archive(root, "cifar-10-batches-py", url, md5)
    with as_published("CIFAR-10", top):
        files = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
        batches = [_unpickle(top / f) for f in files]
        data = np.concatenate([np.asarray(b["data"], dtype=np.uint8) for b in batches])
        labels = np.concatenate([np.asarray(b["labels"], dtype=np.int64) for b in batches])
        names = _unpickle(top / "batches.meta")["label_names"]
        images = data.reshape(len(labels), 3, 32, 32).transpose(0, 2, 3, 1)
    classes = tuple(n.decode() if isinstance(n, bytes) else str(n) for n in names)
    return Listing(images, [f"{split}-{i:05d}" for i in range(len(images))], labels, classes)


class _ArraysOnly(pickle.Unpickler):
    """Unpickler for CIFAR's files: lists, bytes and NumPy arrays; it refuses everything that could run code."""

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
        content = _ArraysOnly(file, encoding="latin1").load()
    return {k.decode() if isinstance(k, bytes) else k: v for k, v in content.items()}
