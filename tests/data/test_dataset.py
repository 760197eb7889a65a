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
from sslrun.data.cache import resized
from sslrun.data.dataset import (
    Dataset,
    decoded,
    listing_hash,
    load,
    load_test,
    load_train,
    load_unlabeled,
    split_validation,
)
from sslrun.data.decode import decode
from sslrun.data.images import Images, digests
from sslrun.data.labels import LabelBudget, validation
from sslrun.data.options import Options
from sslrun.data.sources.source import Listing
from tests.helpers import folder_node, load_split, source_node


def test_a_subset_of_classes_in_the_given_order(photos: Path) -> None:
    train, _ = load_split(source_node("folder", photos, classes=["temple"]))
    assert train.class_names == ["temple"]
    train, _ = load_split(source_node("folder", photos, classes=["temple", "flower"]))
    assert train.class_names == ["temple", "flower"]
    assert all(n.startswith("temple") == (c == 0) for n, c in zip(train.names, train.labels.tolist(), strict=True))  # type: ignore[union-attr]


def test_training_has_all_images_until_validation_is_split_off() -> None:
    node = source_node("digits", None)
    data, given = load_train(node)
    train, val = split_validation(data, node)
    assert given is None
    assert val is not None
    assert sorted([*train.names, *val.names]) == sorted(data.names)
    assert len(val) / len(data) == pytest.approx(node["val_fraction"], abs=0.01)
    assert split_validation(data, {**node, "val_fraction": 0.0}) == (data, None)


def test_classes_merged_in_groups() -> None:
    train, _ = load_split(source_node("digits", None, classes={"round": ["0", "8"], "straight": ["1", "7", "4"]}))
    assert train.class_names == ["round", "straight"]
    assert train.labels is not None
    round_ones, straight_ones = train.labels.bincount().tolist()
    assert straight_ones > round_ones


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (["temple", "flowr"], "no class flowr; did you mean flower"),
        ({"a": ["temple"], "b": ["temple"]}, "two groups"),
    ],
)
def test_unknown_classes(photos: Path, classes: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_split(source_node("folder", photos, classes=classes))


def test_max_images_caps_training_and_not_test(photos: Path) -> None:
    train, val = load_split(source_node("folder", photos, max_images=20))
    assert len(train) + len(val or ()) == 20
    assert len(load_test(source_node("folder", photos))) == 12
    flat, _ = load_split(source_node("folder", photos / "flower", max_images=7))
    assert len(flat) == 7


def test_different_data_has_different_fingerprints(photos: Path) -> None:
    a, _ = load_split(source_node("folder", photos))
    assert a.fingerprint() == load_split(source_node("folder", photos))[0].fingerprint()
    assert a.fingerprint() != load_split(source_node("folder", photos, image_size=15))[0].fingerprint()
    assert a.fingerprint() != load_split(source_node("folder", photos, split_seed=1))[0].fingerprint()


def test_case_39_unreadable_files_are_skipped_up_to_a_fraction(photos: Path, caplog: pytest.LogCaptureFixture) -> None:

    shutil.copytree(photos, "set")
    Path("set/temple/a text.jpg").write_text("I am not an image")
    Path("set/flower/an empty one.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 of 50 images cannot be read.*\n.*set/temple/a text\.jpg: not an image"):
        load_split(folder_node("set", max_bad_fraction=0.01))
    for _ in range(2):  # the second time from the cache, including the reasons
        data, _ = load_split(folder_node("set", max_bad_fraction=0.05))
        assert data.labels is not None
        assert len(data) == len(data.labels) == len(data.names) == 49
        assert "temple/a text.jpg" not in data.names
        for name, image, label in zip(data.names, data.images[:], data.labels.tolist(), strict=True):
            assert (image.permute(1, 2, 0).numpy() == decode(f"set/{name}", 16)).all()
            assert name.startswith(data.class_names[label])
    with pytest.raises(UserError, match="max_bad_fraction=0"):
        load_split(folder_node("set", max_bad_fraction=0.0))


CLASSES = ["cat", "dog", "cow"]


def dataset(first: int, labels: list[int]) -> Dataset:
    """Return images whose brightness and name are their number, counted from `first`."""
    numbers = np.arange(first, first + len(labels), dtype=np.uint8)
    pixels = np.ascontiguousarray(np.broadcast_to(numbers[:, None, None, None], (len(labels), 4, 4, 3)))
    names = [f"{n}.png" for n in numbers]
    return Dataset(Images([torch.from_numpy(pixels)], digests(pixels)), torch.tensor(labels), CLASSES, names)


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


def test_each_image_of_a_selection_keeps_its_label_and_name() -> None:
    data = dataset(0, [2, 0, 1, 1, 0, 2])
    positions = np.array([5, 0, 3])
    assert rows(data.take(positions)) == [rows(data)[i] for i in positions]


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


def made(split: str, *, root: str | None = None, unlabeled: int = 5, labels: bool = True, train: bool = True) -> Any:
    """Be a data set of 30, 12 and `unlabeled` images whose red is their number; green is 0, 100 or 200 by split."""
    CALLS.append((split, root))
    number = {"train": 30 if train else 0, "test": 12, "unlabeled": unlabeled}[split]
    if not number:
        return None
    array = np.zeros((number, 8, 8, 3), np.uint8)
    array[..., 0] = np.arange(number)[:, None, None]
    array[..., 1] = {"train": 0, "test": 100, "unlabeled": 200}[split]
    names = [f"{split}-{i}" for i in range(number)]
    if split == "unlabeled" or not labels:
        return Listing(array, names)
    return Listing(array, names, np.arange(number) % 3, ("cat", "dog", "cow"), ("n1", "n2", "n3"))


CALLS: list[tuple[str, str | None]] = []


def made_node(**keys: Any) -> dict[str, Any]:
    return {"_target_": "tests.data.test_dataset.made", "image_size": 8, **keys}


def numbers(data: Dataset | None) -> list[int]:
    assert data is not None
    return data.images[:][:, 0, 0, 0].tolist()


def test_validation_is_a_tenth_by_default_or_the_fraction_and_seed_given() -> None:
    for keys, fraction, seed in (
        ({}, 0.1, 0),
        ({"val_fraction": 0.3, "split_seed": 7}, 0.3, 7),
        ({"val_fraction": 0.3, "split_seed": 8}, 0.3, 8),
    ):
        train, val = load_split(made_node(**keys))
        expected = validation(np.arange(30) % 3, CLASSES, fraction, seed)
        assert (numbers(train), numbers(val)) == (expected[0].tolist(), expected[1].tolist())
    for more in ({"val_fraction": 0.0}, {"labels": False}):
        train, val = load_split(made_node(**more))
        assert (numbers(train), val) == (list(range(30)), None)


def test_a_test_split_without_labels_or_no_split_at_all_is_refused() -> None:
    assert numbers(load_test(made_node())) == list(range(12))
    assert load_test(made_node()).images[:][0, 1, 0, 0] == 100
    with pytest.raises(UserError, match="made has no labels to evaluate on"):
        load_test(made_node(labels=False))
    with pytest.raises(UserError, match="made has no training split"):
        load_split(made_node(train=False))
    assert load(made_node(unlabeled=0), "unlabeled") is None
    assert listing_hash(made_node(unlabeled=0), "unlabeled") == ""


def test_classes_are_chosen_in_train_and_test_and_max_images_only_in_train() -> None:
    for classes, names in ((["cow", "n1"], ["cow", "cat"]), ({"a": ["n3", "cow"], "b": ["cat"]}, ["a", "b"])):
        node = made_node(classes=classes, max_images=8, val_fraction=0.0)
        for split, n in (("train", 8), ("test", 8), ("unlabeled", 5)):
            data = load(node, split)  # type: ignore[arg-type]
            assert data is not None
            assert len(data) == n
            if data.labels is not None:
                assert data.class_names == names
                assert [(i % 3 == 0) for i in numbers(data)] == [c == 1 for c in data.labels]
                assert all(i % 3 != 1 for i in numbers(data))
    assert len(load_test(made_node(max_images=3))) == 12
    assert len(load(made_node(max_images=3), "unlabeled") or ()) == 5
    assert len(load_split(made_node(max_images=29, val_fraction=0.0))[0]) == 29
    with pytest.raises(UserError, match="these images have no labels"):
        load_split(made_node(labels=False, classes=["cat"]))


@pytest.mark.parametrize("labels", [True, False])
def test_max_images_are_the_same_random_ones_each_time_in_their_order(
    labels: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    node = made_node(labels=labels, max_images=9, val_fraction=0.0)
    first, again = numbers(load_split(node)[0]), numbers(load_split(node)[0])
    assert first == again == sorted(first) != list(range(9))
    assert len(first) == 9
    if labels:
        assert sorted(i % 3 for i in first) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert "Using 9 of 30 training images" in caplog.text
    n = 3 if labels else 2  # at least one of each class
    few = numbers(load_split({**node, "max_images": n})[0])
    assert len(few) == n
    assert few == sorted(few)


def test_a_home_folder_is_expanded_in_the_root_and_in_the_folder_of_unlabeled_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", os.path.abspath("home"))
    Path("home/more").mkdir(parents=True)
    Image.new("RGB", (16, 8), "red").save("home/more/a.png")
    Image.new("RGB", (16, 8), "blue").save("home/more/b.png")
    CALLS.clear()
    node = made_node(root="~/mine", channels="gray", resize="pad", range=None)
    own, extra = load_unlabeled(node, "~/more")
    assert [("unlabeled", os.path.abspath("home/mine"))] == CALLS
    assert (own.names, extra.names) == ([f"unlabeled-{i}" for i in range(5)], ["a.png", "b.png"])
    assert extra.images[:][0, :, 0, 0].tolist() == [128] * 3  # padded
    assert extra.images[:][0, :, 4, 4].tolist() == [76] * 3  # gray
    assert [len(d) for d in load_unlabeled(node, None)] == [5]
    assert [d.names for d in load_unlabeled({**node, "unlabeled": 0}, "~/more")] == [["a.png", "b.png"]]
    assert load_unlabeled({**node, "unlabeled": 0}, None) == []


def test_arrays_and_files_are_preprocessed_as_the_options_say() -> None:
    array = np.random.default_rng(0).integers(0, 256, (3, 12, 20, 3), dtype=np.uint8)
    for i, image in enumerate(array):
        Image.fromarray(image).save(f"{i}.png")
    files = [f"{i}.png" for i in range(3)]
    seen = set()
    for channels in ("rgb", "gray"):
        for resize in ("crop", "pad", "squash"):
            options = Options(image_size=8, resize=resize, channels=channels)
            from_files = decoded(Listing(files, files), options).array
            assert all((from_files[i] == decode(f, 8, resize, channels)).all() for i, f in enumerate(files))
            assert (decoded(Listing(array, files), options).array == resized(array, 8, channels)).all()
            seen.add(from_files.tobytes())
    assert len(seen) == 6


@pytest.mark.parametrize("labels", [True, False])
def test_unreadable_files_are_listed_and_the_others_keep_their_names_and_labels(
    labels: bool, caplog: pytest.LogCaptureFixture
) -> None:
    root = Path("mine/train/cat" if labels else "mine")
    root.mkdir(parents=True)
    for i in range(12):
        (root / f"{i:02d}.png").write_text("text")
    for i in (3, 7):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(root / f"{i:02d}.png")
    if labels:
        Path("mine/train/dog").mkdir()
        Image.new("RGB", (8, 8), (20, 0, 0)).save("mine/train/dog/x.png")
        Path("mine/test/dog").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save("mine/test/dog/x.png")
    node = folder_node("mine", image_size=8, max_bad_fraction=10 / (13 if labels else 12))
    data, _ = load_split(node)
    assert numbers(data) == ([3, 7, 20] if labels else [3, 7])
    assert [n[-6:] for n in data.names] == ["03.png", "07.png", *(["/x.png"] if labels else [])]
    if labels:
        assert data.labels is not None
        assert data.labels.tolist() == [0, 0, 1]
    warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert [w for w in warned if w.startswith("Skipped ")] == warned
    assert len(warned) == 10
    (root / "03.png").write_text("text")
    with pytest.raises(UserError, match=r"^11 of 1[23] images cannot be read, more than") as refused:
        load_split(node)
    lines = str(refused.value).splitlines()
    assert lines[1].endswith("00.png: not an image in a supported format")
    assert (len(lines), lines[-1]) == (12, "... and 1 more")
    (root / "07.png").write_text("text")
    if not labels:
        with pytest.raises(UserError, match="no images are left to use"):
            load_split({**node, "max_bad_fraction": 1.0})


def test_the_images_of_a_label_budget(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    data = dataset(0, [0, 0, 1, 1, 1, 2, 2, 2, 2])
    labels = np.array([0, 0, 1, 1, 1, 2, 2, 2, 2])
    for budget, of in ((LabelBudget(4, seed=3), None), (LabelBudget(fraction=0.5, seed=3), 14)):
        chosen = data.labeled(budget, "mine", of)
        assert rows(chosen) == [rows(data)[i] for i in budget.rows(labels, of)]
        assert len(chosen) == (4 if of is None else 7)
    assert not caplog.text
    assert len(data.labeled(LabelBudget(per_class=3), "mine")) == 8
    assert "labels_per_class=3: cat has 2; all of them are used." in caplog.text


def test_images_without_usable_labels_are_refused() -> None:
    data = dataset(0, [0, 0, 1, 1, 2, 2])
    refused = {
        "mine has only one class (cat); a classifier needs at least 2": Dataset(
            data.images, data.labels, ["cat"], data.names
        ),
        "mine has no labels: put the images into one folder per class, or set dataset.labels": Dataset(
            data.images, None, [], data.names
        ),
        "mine has no training image of dog: add some, or choose the classes with dataset.classes": dataset(0, [0, 2]),
        "mine has no training image of cat, dog: add some, or choose the classes with dataset.classes": dataset(0, [2]),
    }
    for text, images in refused.items():
        with pytest.raises(UserError) as error:
            images.labeled(LabelBudget(), "mine")
        assert str(error.value) == text
    with pytest.raises(UserError, match="labels=7: there are only 6 labels for training"):
        data.labeled(LabelBudget(7), "mine")


def test_other_labels_or_class_names_of_the_same_images_are_another_fingerprint() -> None:
    data = dataset(0, [0, 1, 2])
    others = [
        dataset(0, [0, 2, 1]),
        Dataset(data.images, data.labels, ["cat", "dog", "hen"], data.names),
        Dataset(data.images, None, [], data.names),
        dataset(1, [0, 1, 2]),
    ]
    prints = [d.fingerprint() for d in (data, *others)]
    assert len(set(prints)) == 5
    assert {len(p) for p in prints} == {16}
    renamed_files = Dataset(data.images, data.labels, data.class_names, ["x", "y", "z"])
    assert renamed_files.fingerprint() == data.fingerprint()


def test_the_fingerprint_of_a_listing_depends_on_names_order_labels_and_classes_but_not_on_pixels() -> None:
    data = dataset(0, [0, 1, 2])
    others = [
        dataset(0, [0, 2, 1]),
        Dataset(data.images, data.labels, ["cat", "dog", "hen"], data.names),
        Dataset(data.images, data.labels, data.class_names, ["x", "y", "z"]),
        data.take(np.array([1, 0, 2])),
        data.take(np.array([0, 1])),
    ]
    assert len({d.listing_fingerprint() for d in (data, *others)}) == 6
    other_pixels = Dataset(dataset(1, [0, 1, 2]).images, data.labels, data.class_names, data.names)
    assert other_pixels.fingerprint() != data.fingerprint()
    assert other_pixels.listing_fingerprint() == data.listing_fingerprint()


def test_the_hash_of_a_split_of_arrays_depends_on_its_pixels_labels_and_classes() -> None:
    array = np.zeros((4, 8, 8, 3), np.uint8)
    other = array.copy()
    other[3, 7, 7, 2] = 1
    names = [f"{i}" for i in range(4)]
    listings = [
        Listing(array, names, np.array([0, 1, 0, 1]), ("a", "b")),
        Listing(other, names, np.array([0, 1, 0, 1]), ("a", "b")),
        Listing(array, names, np.array([0, 1, 1, 0]), ("a", "b")),
        Listing(array, names, np.array([0, 1, 0, 1]), ("a", "c")),
        Listing(array, names[::-1], np.array([0, 1, 0, 1]), ("a", "b")),
        Listing(array, names),
    ]
    hashes = []
    for listing in listings:
        GIVEN[:] = [listing]
        hashes.append(listing_hash({"_target_": "tests.data.test_dataset.given", "image_size": 8}, "test"))
    assert len(set(hashes)) == len(listings)


GIVEN: list[Listing] = []


def given(split: str) -> Listing:
    return GIVEN[0]


def test_groups_stay_with_their_images() -> None:
    data = dataset(0, [0, 1] * 9)
    data.groups = np.array([f"g{i // 2 % 3}" for i in range(18)], dtype=object)
    some, others = data.take(np.arange(0, 18, 5)), data.take(np.array([17, 3]))
    data.class_names = ["cat", "dog"]
    for part in (some, others, some + others, data.labeled(LabelBudget(6), "mine")):
        assert part.groups is not None
        assert part.groups.tolist() == [f"g{i // 2 % 3}" for i in numbers(part)]
    assert (dataset(0, [0]) + data).groups is None
