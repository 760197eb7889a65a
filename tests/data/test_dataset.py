"""Data sets that are joined and divided."""

import numpy as np
import torch

from sslrun.data.dataset import Dataset
from sslrun.data.images import Images, digests

CLASSES = ["cat", "dog", "cow"]


def dataset(first: int, labels: list[int]) -> Dataset:
    """Return images of which the brightness is their number, counted from `first`, and so is the name."""
    numbers = np.arange(first, first + len(labels), dtype=np.uint8)
    pixels = np.ascontiguousarray(np.broadcast_to(numbers[:, None, None, None], (len(labels), 4, 4, 3)))
    names = [f"{n}.png" for n in numbers]
    sizes = {c: 10 * labels.count(c) for c in range(3)}
    return Dataset(Images([torch.from_numpy(pixels)], digests(pixels)), torch.tensor(labels), CLASSES, names, sizes)


def rows(data: Dataset) -> list[tuple[int, str, str]]:
    """Return brightness, class and name of every image."""
    assert data.labels is not None
    brightness = data.images[:][:, 0, 0, 0].tolist()
    return list(zip(brightness, [data.class_names[c] for c in data.labels], data.names, strict=True))


def test_each_image_of_joined_data_sets_keeps_its_label_and_name() -> None:
    first, second = dataset(0, [2, 0, 1]), dataset(3, [1, 1, 0, 2])
    assert rows(first)[0] == (0, "cow", "0.png")
    assert rows(first + second) == rows(first) + rows(second)
    assert rows(second + first) == rows(second) + rows(first)
    assert (first + second).class_sizes == first.class_sizes  # label fractions refer to the first


def test_each_image_of_a_selection_keeps_its_label_and_name() -> None:
    data = dataset(0, [2, 0, 1, 1, 0, 2])
    positions = np.array([5, 0, 3])
    assert rows(data.take(positions)) == [rows(data)[i] for i in positions]
    assert data.take(positions).class_sizes == data.class_sizes


def test_a_fold_and_the_rest_are_all_images_once() -> None:
    data = dataset(0, [0, 1, 2] * 4)
    rest, fold = data.without_fold(0, 2, 0)
    assert sorted(rows(rest) + rows(fold)) == rows(data)
    assert len(fold) == 6
