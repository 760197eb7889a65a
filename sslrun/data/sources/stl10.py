"""STL-10."""

import numpy as np

from sslrun.data import fetch
from sslrun.data.sources.source import Listing, SplitName, as_published


def stl10(split: SplitName, *, root: str, url: str, md5: str) -> Listing | None:
    """5,000 + 8,000 photos of 96 x 96 px in 10 classes, and 100,000 without labels (Coates et al. 2011)."""
    top = fetch.archive(root, "stl10_binary", url, md5)
    with as_published("STL-10", top):
        planes = np.memmap(top / f"{split}_X.bin", dtype=np.uint8, mode="r").reshape(-1, 3, 96, 96)
        images = planes.transpose(0, 3, 2, 1)  # each plane is stored in column-major order
        names = [f"{split}-{i:06d}" for i in range(len(images))]
        if split == "unlabeled":
            return Listing(images, names)
        labels = np.fromfile(top / f"{split}_y.bin", dtype=np.uint8).astype(np.int64) - 1
        classes = tuple((top / "class_names.txt").read_text().split())
        if len(labels) != len(images) or labels.max() >= len(classes):
            raise ValueError(f"{len(images)} images, {len(labels)} labels, {len(classes)} classes")
    return Listing(images, names, labels, classes)
