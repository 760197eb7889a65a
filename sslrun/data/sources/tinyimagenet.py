"""Tiny ImageNet."""

import os

import numpy as np

from sslrun.data import fetch
from sslrun.data.decode import is_image, relative
from sslrun.data.sources.source import Listing, SplitName, as_published


def tinyimagenet(split: SplitName, *, root: str, url: str, md5: str) -> Listing | None:
    """100,000 + 10,000 photos of 64 x 64 px in 200 classes (Stanford CS231n).

    The test split is the official validation split, since the official test split has no labels.
    """
    if split == "unlabeled":
        return None
    top = fetch.archive(root, "tiny-imagenet-200", url, md5)
    with as_published("Tiny ImageNet", top):
        ids = sorted((top / "wnids.txt").read_text().split())
        words = dict(line.split("\t", 1) for line in (top / "words.txt").read_text().splitlines() if "\t" in line)
        if split == "train":
            folders = [(top / "train" / wnid / "images", wnid) for wnid in ids]
            files = [(f"{f}{os.sep}{name}", wnid) for f, wnid in folders for name in sorted(os.listdir(f))]
        else:
            rows = [line.split("\t") for line in (top / "val" / "val_annotations.txt").read_text().splitlines()]
            files = sorted((str(top / "val" / "images" / row[0]), row[1]) for row in rows)
        files = [(f, wnid) for f, wnid in files if is_image(f)]
        position = {wnid: i for i, wnid in enumerate(ids)}
        labels = np.array([position[wnid] for _, wnid in files], dtype=np.int64)
    names = [relative(f, top) for f, _ in files]
    classes = _distinct([words.get(wnid, wnid).split(",")[0] for wnid in ids], ids)
    return Listing([f for f, _ in files], names, labels, classes, tuple(ids))


def _distinct(words: list[str], ids: list[str]) -> tuple[str, ...]:
    return tuple(w if words.count(w) == 1 else f"{w} ({i})" for w, i in zip(words, ids, strict=True))
