"""Flowers-102."""

from pathlib import Path

import numpy as np

from sslrun.base.files import file_hash
from sslrun.data import fetch
from sslrun.data.decode import relative
from sslrun.data.sources.source import Listing, SplitName, as_published


def flowers102(split: SplitName, *, root: str, url: str, files: dict[str, str]) -> Listing | None:
    """2,040 + 6,149 flower photos in 102 classes (Nilsback & Zisserman 2008), with torchvision's class names.

    The train split is the official training and validation splits together, 10 + 10 images per class.
    """
    from scipy.io import loadmat
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
        for name in lists:
            if file_hash(top / name, "md5").hexdigest() != files[name]:
                raise ValueError(f"{name} has a wrong checksum")
        ids, labels = (loadmat(top / name, squeeze_me=True) for name in ("setid.mat", "imagelabels.mat"))
        numbers = np.concatenate([ids[subset] for subset in (("trnid", "valid") if split == "train" else ("tstid",))])
        classes = labels["labels"][numbers - 1].astype(np.int64) - 1  # both count from 1
    pairs = sorted((str(top / "jpg" / f"image_{n:05d}.jpg"), c) for n, c in zip(numbers, classes, strict=True))
    names = [relative(f, top) for f, _ in pairs]
    return Listing([f for f, _ in pairs], names, np.array([c for _, c in pairs]), tuple(Flowers102.classes))
