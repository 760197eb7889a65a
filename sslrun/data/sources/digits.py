"""The digits that come with scikit-learn."""

import numpy as np

from sslrun.data.sources.source import Listing, SplitName, take_split


def digits(split: SplitName, *, root: None = None) -> Listing | None:
    """1,797 handwritten digits of 8 x 8 px that come with scikit-learn (UCI, CC BY 4.0)."""
    from sklearn.datasets import load_digits

    if split == "unlabeled":
        return None
    values, labels = load_digits(return_X_y=True)
    images = np.round(values.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    names = [f"digit-{i:04d}" for i in range(len(images))]
    return take_split(Listing(images, names, labels.astype(np.int64), tuple("0123456789")), split)
