"""Classes, max_images, unreadable files, fingerprints, selection and concatenation of data sets."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sslrun.base.errors import UserError
from sslrun.data.dataset import Dataset, listed, listing_hash, load_test, load_train
from sslrun.data.decode import decode
from sslrun.data.images import Images, digests
from tests.helpers import folder_node, source_node


def test_a_subset_of_classes_in_the_given_order(photos: Path) -> None:
    train, _ = load_train(source_node("folder", photos, classes=["temple"]))
    assert train.class_names == ["temple"]
    train, _ = load_train(source_node("folder", photos, classes=["temple", "flower"]))
    assert train.class_names == ["temple", "flower"]
    assert all(n.startswith("temple") == (c == 0) for n, c in zip(train.names, train.labels.tolist(), strict=True))  # type: ignore[union-attr]


def test_classes_merged_in_groups() -> None:
    train, _ = load_train(source_node("digits", None, classes={"round": ["0", "8"], "straight": ["1", "7", "4"]}))
    assert train.class_names == ["round", "straight"]
    assert train.class_sizes[1] > train.class_sizes[0]


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (["temple", "flowr"], "no class flowr; did you mean flower"),
        ({"a": ["temple"], "b": ["temple"]}, "two groups"),
    ],
)
def test_unknown_classes(photos: Path, classes: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_train(source_node("folder", photos, classes=classes))


def test_max_images_caps_training_and_not_test(photos: Path) -> None:
    train, val = load_train(source_node("folder", photos, max_images=20))
    assert len(train) + len(val or ()) == 20
    assert len(load_test(source_node("folder", photos))) == 12
    flat, _ = load_train(source_node("folder", photos / "flower", max_images=7))
    assert len(flat) == 7


def test_max_images_below_the_number_of_classes_keeps_classes_at_random() -> None:
    for c in range(20):
        Path(f"mine/{c:02d}").mkdir(parents=True)
        for i in range(2):
            Path(f"mine/{c:02d}/{i}.png").touch()
    listing = listed(folder_node("mine", max_images=10), "train")
    assert listing is not None
    assert listing.labels is not None
    assert len(listing.labels) == 10
    assert 0 < (listing.labels >= 10).sum() < 10  # not only the first ones


def test_different_data_has_different_fingerprints(photos: Path) -> None:
    a, _ = load_train(source_node("folder", photos))
    assert a.fingerprint() == load_train(source_node("folder", photos))[0].fingerprint()
    assert a.fingerprint() != load_train(source_node("folder", photos, image_size=15))[0].fingerprint()
    assert a.fingerprint() != load_train(source_node("folder", photos, split_seed=1))[0].fingerprint()


def test_case_39_unreadable_files_are_skipped_up_to_a_fraction(photos: Path, caplog: pytest.LogCaptureFixture) -> None:

    shutil.copytree(photos, "set")
    Path("set/temple/a text.jpg").write_text("I am not an image")
    Path("set/flower/an empty one.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 of 50 images cannot be read.*\n.*set/temple/a text\.jpg: not an image"):
        load_train(folder_node("set", max_bad_fraction=0.01))
    for _ in range(2):  # the second time from the cache, including the reasons
        data, _ = load_train(folder_node("set", max_bad_fraction=0.05))
        assert data.labels is not None
        assert len(data) == len(data.labels) == len(data.names) == 49
        assert "temple/a text.jpg" not in data.names
        for name, image, label in zip(data.names, data.images[:], data.labels.tolist(), strict=True):
            assert (image.permute(1, 2, 0).numpy() == decode(f"set/{name}", 16)).all()
            assert name.startswith(data.class_names[label])
    with pytest.raises(UserError, match="max_bad_fraction=0"):
        load_train(folder_node("set", max_bad_fraction=0.0))


CLASSES = ["cat", "dog", "cow"]


def dataset(first: int, labels: list[int]) -> Dataset:
    """Return images whose brightness and name are their number, counted from `first`."""
    numbers = np.arange(first, first + len(labels), dtype=np.uint8)
    pixels = np.ascontiguousarray(np.broadcast_to(numbers[:, None, None, None], (len(labels), 4, 4, 3)))
    names = [f"{n}.png" for n in numbers]
    sizes = {c: 10 * labels.count(c) for c in range(3)}
    return Dataset(Images([torch.from_numpy(pixels)], digests(pixels)), torch.tensor(labels), CLASSES, names, sizes)


def rows(data: Dataset) -> list[tuple[int, str, str]]:
    """Return brightness, class name and name of every image."""
    assert data.labels is not None
    brightness = data.images[:][:, 0, 0, 0].tolist()
    return list(zip(brightness, [data.class_names[c] for c in data.labels], data.names, strict=True))


def test_each_image_of_concatenated_data_sets_keeps_its_label_and_name() -> None:
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


def test_a_fold_and_the_rest_are_disjoint_and_complete() -> None:
    data = dataset(0, [0, 1, 2] * 4)
    rest, fold = data.without_fold(0, 2, 0)
    assert sorted(rows(rest) + rows(fold)) == rows(data)
    assert len(fold) == 6


@pytest.fixture
def node() -> dict[str, Any]:
    """A folder of four images a class, in training and test."""
    for split in ("train", "test"):
        for c, name in enumerate(("cat", "dog")):
            folder = Path("mine", split, name)
            folder.mkdir(parents=True)
            for i in range(4):
                Image.fromarray(np.full((8, 8, 3), 60 * i + c, np.uint8)).save(folder / f"{i}.bmp")
    return {"_target_": "sslrun.data.sources.folder.folder", "root": "mine", "image_size": 8}


def rewritten(path: Path) -> None:
    """Write another image of the same size, a second later."""
    before, size = os.stat(path), path.stat().st_size
    Image.fromarray(np.full((8, 8, 3), 255, np.uint8)).save(path)
    assert path.stat().st_size == size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))


def grown(path: Path) -> None:
    """Write more bytes, with the time that the file had."""
    before = os.stat(path)
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def to_the_other_class(path: Path) -> None:
    path.rename("mine/test/dog/9.bmp")


def renamed(path: Path) -> None:
    path.rename(path.with_name("9.bmp"))


@pytest.mark.parametrize("change", [rewritten, grown, to_the_other_class, renamed, Path.unlink])
def test_a_changed_file_of_the_test_split_is_noticed(node: dict[str, Any], change: Callable[[Path], None]) -> None:
    before = {split: listing_hash(node, split) for split in ("train", "test")}
    change(Path("mine/test/cat/0.bmp"))
    assert listing_hash(node, "train") == before["train"]
    assert listing_hash(node, "test") != before["test"]


def test_the_same_files_in_another_place_are_the_same_split(node: dict[str, Any]) -> None:
    before = listing_hash(node, "test")
    Path("mine").rename("moved")
    assert listing_hash({**node, "root": "moved"}, "test") == before


def test_other_classes_of_the_same_files_are_another_split(node: dict[str, Any]) -> None:
    groupings = [{"a": ["cat"], "b": ["dog"]}, {"a": ["dog"], "b": ["cat"]}, {"a": ["cat"], "c": ["dog"]}]
    assert len({listing_hash({**node, "classes": g}, "test") for g in groupings}) == 3
