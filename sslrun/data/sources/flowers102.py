"""Flowers-102."""

from pathlib import Path

import numpy as np

from sslrun.data import fetch
from sslrun.data.decode import relative
from sslrun.data.sources.source import Pictures, SplitName, as_published


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
    with as_published("Flowers-102", top):
        parts = [Flowers102(root, split=s) for s in (("train", "val") if split == "train" else ("test",))]
    found = sorted((str(f), c) for p in parts for f, c in zip(p._image_files, p._labels, strict=True))
    names = [relative(f, top) for f, _ in found]
    return Pictures([f for f, _ in found], names, np.array([c for _, c in found]), tuple(Flowers102.classes))
