"""A user's folder of images, in all supported layouts."""

import itertools
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sslrun.base.console import start_logging
from sslrun.base.errors import UserError
from sslrun.data.dataset import listed, load, load_test
from sslrun.data.tree import find_images
from tests.helpers import folder_node, frames, load_split, source_node


def test_one_folder_per_class_is_split_into_train_and_test(photos: Path) -> None:
    train, val = load_split(source_node("folder", photos))
    test = load_test(source_node("folder", photos))
    assert val is not None
    assert [len(train), len(val), len(test)] == [38, 10, 12]
    assert train.class_names == ["flower", "temple"]
    assert not set(train.names) & set(test.names)
    assert sorted(load_test(source_node("folder", photos)).names) == sorted(test.names)
    assert all(n.startswith(train.class_names[c]) for n, c in zip(train.names, train.labels.tolist(), strict=True))  # type: ignore[union-attr]


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_train_and_test_folders(photos: Path, test_name: str) -> None:
    shutil.copytree(photos, "set/train")
    shutil.copytree(photos / "temple", f"set/{test_name}/temple")
    shutil.copytree(photos / "flower", "set/unlabeled")
    train, _ = load_split(source_node("folder", "set", val_fraction=0.0))
    assert len(train) == 60
    test = load_test(source_node("folder", "set"))
    assert len(test) == 30
    assert set(test.labels.tolist()) == {1}  # type: ignore[union-attr]
    more = load(source_node("folder", "set"), "unlabeled")
    assert more is not None
    assert len(more) == 30
    assert more.labels is None
    Path(f"set/{test_name}/temple").rename(f"set/{test_name}/castle")
    with pytest.raises(UserError, match="castle"):
        load_test(source_node("folder", "set"))


def test_of_a_test_and_a_val_folder_the_test_folder_is_the_test_split() -> None:
    for split, n in (("train", 4), ("val", 3), ("test", 2)):
        for name in ("cat", "dog"):
            Path(f"mine/{split}/{name}").mkdir(parents=True)
            for i in range(n):
                Path(f"mine/{split}/{name}/{i}.png").touch()
    listing = listed(folder_node("mine"), "test")
    assert listing is not None
    assert len(listing.names) == 4
    assert all("/test/" in f for f in listing.items)


def test_case_47_unlabeled_folders_flat_and_nested(photos: Path) -> None:
    shutil.copytree(photos / "flower", "flat")
    shutil.copytree(photos / "temple", "nested/2021")
    shutil.copytree(photos / "flower", "nested/2022")
    for root, n in (("flat", 30), ("nested", 60)):
        train, val = load_split(source_node("folder", root))
        assert (len(train), val, train.labels) == (n, None, None)
        with pytest.raises(UserError, match="no labels"):
            load_test(source_node("folder", root))


def test_images_next_to_class_folders_are_unlabeled(photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    start_logging()
    shutil.copytree(photos, "set")
    shutil.copytree(photos / "flower", "set/deep/summer")
    assert load_split(source_node("folder", "set"))[0].class_names == ["deep", "flower", "temple"]
    shutil.copy(photos / "flower/flower 00.jpg", "set/cover.jpg")
    assert load_split(source_node("folder", "set"))[0].class_names == ["deep", "flower", "temple"]
    more = load(source_node("folder", "set"), "unlabeled")
    assert more is not None
    assert more.names == ["cover.jpg"]
    assert "1 image next to the class folders have no label" in capfd.readouterr().err


def test_a_wrapper_folder_is_descended_into(photos: Path) -> None:
    shutil.copytree(photos, "download/2021/my photos")
    assert load_split(source_node("folder", "download"))[0].class_names == ["flower", "temple"]


@pytest.mark.parametrize(("make", "words"), [(None, "no such folder"), ("empty", "no images")])
def test_case_45_missing_and_empty_folders(make: str | None, words: str) -> None:
    if make:
        Path(make).mkdir()
    with pytest.raises(UserError, match=words):
        load_split(source_node("folder", make or "nowhere"))


@pytest.mark.parametrize(("train_name", "test_name"), [("Train", "Test"), ("Training", "Testing"), ("TRAIN", "valid")])
def test_other_names_of_split_folders(photos: Path, train_name: str, test_name: str) -> None:
    shutil.copytree(photos, f"set/{train_name}")
    shutil.copytree(photos / "temple", f"set/{test_name}/temple")
    train, _ = load_split(source_node("folder", "set", val_fraction=0.0))
    assert (len(train), train.class_names) == (60, ["flower", "temple"])
    assert len(load_test(source_node("folder", "set"))) == 30


def test_images_of_every_kind_in_one_folder(photos: Path) -> None:
    with Image.open(photos / "flower/flower 01.jpg") as image:
        for c in ("a", "b"):
            for suffix in ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "TIFF", "PNG"):
                Path("set", c).mkdir(parents=True, exist_ok=True)
                image.save(Path("set", c, f"x.{suffix}"))
    assert len(find_images("set")) == 18
    assert len(load_split(folder_node("set"))[0]) == 18 - 2 * round(0.2 * 9)


def test_unknown_test_classes_get_the_nearest_name(tmp_path: Path) -> None:
    for name in ("train/flat", "train/house", "test/flatt", "test/house"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
    with pytest.raises(UserError, match=r"classes that are missing in train/: flatt; did you mean flat\?$"):
        load_test(source_node("folder", tmp_path))


def files(layout: str, n: int = 5) -> None:
    """Create n empty images `0.png`, ... in each of these folders, or one file if a name has a suffix."""
    for name in layout.split():
        path = Path("set", name.replace("~", " "))
        if path.suffix:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            continue
        path.mkdir(parents=True, exist_ok=True)
        for i in range(n):
            (path / f"{i}.png").touch()


def read(split: str, **keys: Any) -> dict[str, int] | int | None:
    """Return the number of images of a split by class, or as a whole without labels."""
    listing = listed(folder_node("set", **keys), split)  # type: ignore[arg-type]
    if listing is None:
        return None
    if listing.labels is None:
        return len(listing.names)
    return {c: int((listing.labels == i).sum()) for i, c in enumerate(listing.class_names)}


LAYOUTS: list[tuple[str, Any, Any, Any, str]] = [
    # folders with 5 images each; train, test, unlabeled, words of the log
    ("a b", {"a": 4, "b": 4}, {"a": 1, "b": 1}, None, "10 images, 2 classes"),
    ("__MACOSX/photos/a photos/a photos/b @eaDir", {"a": 4, "b": 4}, {"a": 1, "b": 1}, None, "2 system folders"),
    ("a/@eaDir/0.png a b/#recycle b lost+found", {"a": 4, "b": 4}, {"a": 1, "b": 1}, None, "@eaDir, #recycle"),
    ("a b unlabeled", {"a": 4, "b": 4}, {"a": 1, "b": 1}, 5, "5 unlabeled images"),
    ("a b _unlike_training to_sort", {"a": 4, "b": 4}, {"a": 1, "b": 1}, 10, "10 unlabeled images"),
    ("a b _unsure Unlabel" + "led", {"a": 4, "b": 4}, {"a": 1, "b": 1}, 10, "10 unlabeled images"),
    ("train/a train/b train/_unsure", {"a": 4, "b": 4}, {"a": 1, "b": 1}, 5, "train/ 10 images, 2 classes"),
    ("bus car train", {"bus": 4, "car": 4, "train": 4}, {"bus": 1, "car": 1, "train": 1}, None,
     "train/: read as a class"),
    ("bus car Test val", {"Test": 4, "bus": 4, "car": 4, "val": 4}, {"Test": 1, "bus": 1, "car": 1, "val": 1}, None,
     "Test/, val/: read as a class"),
    ("train/a train/b test", {"a": 4, "b": 4}, {"a": 1, "b": 1}, None, "5 images of test/ are in no class folder"),
    ("train/a train/b test/a test/b extra", {"a": 5, "b": 5}, {"a": 5, "b": 5}, None, "are left out (extra)"),
    ("seg_train/seg_train/a seg_train/seg_train/b seg_test/seg_test/b seg_pred/seg_pred", {"a": 5, "b": 5},
     {"a": 0, "b": 5}, None, "left out (seg_pred)"),
    ("Training_Images/a Training_Images/b Test~Set/a", {"a": 5, "b": 5}, {"a": 5, "b": 0}, None, "train/ 10 images"),
    ("train/a train/b val/a val/b", {"a": 5, "b": 5}, {"a": 5, "b": 5}, None, "so val/ is the test split"),
    ("train/a train/b val/a val/b test/a", {"a": 10, "b": 10}, {"a": 5, "b": 0}, None, "val/ 10 images, 2 classes"),
    ("a/2024-05-01 a/2024-05-02 b/2024-05-01", {"a": 8, "b": 4}, {"a": 2, "b": 1}, None, "15 images, 2 classes"),
    ("2024-05-01/a 2024-05-01/b 2024-05-02/a", {"a": 8, "b": 4}, {"a": 2, "b": 1}, None, "15 images, 2 classes"),
    ("2024-05-01 2024-05-02", 10, None, None, "named like dates are not read as classes (2024-05-01, 2024-05-02)"),
    ("20240501 20240502/10", 10, None, None, "named like dates"),
    ("day~1/morning/left night/x", {"day 1": 4, "night": 4}, {"day 1": 1, "night": 1}, None, "2 classes"),
    ("flowers/a flowers/b a b", {"a": 4, "b": 4}, {"a": 1, "b": 1}, None, "10 images left out"),
    ("a b c/1.heics c/2.xyz", {"a": 4, "b": 4}, {"a": 1, "b": 1}, None, "images that can be read: c"),
    ("a b a/1.jfif a/2.jpe a/3.JPG a/notes.txt", {"a": 6, "b": 4}, {"a": 2, "b": 1}, None,
     "1 file of other formats: 1 .txt"),
    (".hidden/a a b", {"a": 4, "b": 4}, {"a": 1, "b": 1}, None, "10 images, 2 classes"),
    (f"th{chr(0xE9)} the{chr(0x301)}/more b", {f"th{chr(0xE9)}": 8, "b": 4}, {f"th{chr(0xE9)}": 2, "b": 1}, None,
     "15 images, 2 classes"),
    ("train/a train/b test/a test/b test/m.png test/_unsure val/x.png", {"a": 5, "b": 5}, {"a": 5, "b": 5}, None,
     "1 image of val/ are in no class folder"),
    ("daisy/daisy rose/rose", {"daisy": 4, "rose": 4}, {"daisy": 1, "rose": 1}, None, "10 images, 2 classes"),
    ("a b c/a", {"a": 4, "b": 4, "c": 4}, {"a": 1, "b": 1, "c": 1}, None, "15 images, 3 classes"),
    ("train/a train/b test/a/x", {"a": 5, "b": 5}, {"a": 5, "b": 0}, None, "test/ 5 images, 1 class"),
    ("train/left train/right train/other test/other/left test/other/right", {"left": 5, "other": 5, "right": 5},
     {"left": 0, "other": 10, "right": 0}, None, "test/ 10 images, 1 class"),
    ("2024-05-01/a 2024-05-01/unlabeled 2024-05-02/b", {"a": 4, "b": 4}, {"a": 1, "b": 1}, 5, "10 images, 2 classes"),
    ("download/photos/a download/photos/b download/unlabeled", {"a": 4, "b": 4}, {"a": 1, "b": 1}, 5,
     "10 images, 2 classes"),
    ("2024-05-01/a 2024-05-02/b misc/a", {"2024-05-01": 4, "2024-05-02": 4, "misc": 4},
     {"2024-05-01": 1, "2024-05-02": 1, "misc": 1}, None, "classes named like dates, next to others: 2024-05-01"),
    ("vehicles/bus vehicles/train vehicles/car animals/cat", {"animals": 4, "vehicles": 12},
     {"animals": 1, "vehicles": 3}, None, "20 images, 2 classes"),
    ("a b test/notes.txt", {"a": 4, "b": 4}, {"a": 1, "b": 1}, None, "test/ has no images"),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "train", "test", "unlabeled", "words"), LAYOUTS, ids=[x[0][:40] for x in LAYOUTS])
def test_layouts(
    layout: str, train: Any, test: Any, unlabeled: Any, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    start_logging()
    files(layout)
    assert read("train") == train
    assert read("test") == test
    assert read("unlabeled") == unlabeled
    assert words in capfd.readouterr().err


def test_a_given_validation_folder_is_the_validation_split(photos: Path) -> None:
    for name in ("train", "val", "test"):
        shutil.copytree(photos, f"set/{name}")
    Path("set/val/temple/temple 00.jpg").unlink()
    train, val = load_split(source_node("folder", "set", val_fraction=0.5))
    assert val is not None
    assert (len(train), len(val)) == (60, 59)
    assert all(n.startswith("val/") for n in val.names)
    assert train.labels is not None
    assert train.labels.bincount().tolist() == [30, 30]
    capped, same = load_split(source_node("folder", "set", max_images=10, classes=["temple"]))
    assert (len(capped), same and len(same)) == (10, 29)
    Path("set/val/castle").mkdir()
    shutil.copy(photos / "temple/temple 00.jpg", "set/val/castle/x.jpg")
    with pytest.raises(UserError, match=r"val/ in set has classes that are missing in train/: castle"):
        load_split(source_node("folder", "set"))


def test_fewer_images_than_classes_are_refused() -> None:
    files("a b c")
    with pytest.raises(UserError, match=r"dataset\.max_images=2 is less than one image for each of the 3 classes"):
        listed(folder_node("set", max_images=2), "train")


def test_without_other_images_those_of_an_unlabeled_folder_are_trained_on() -> None:
    files("unlabeled to_sort")
    found = listed(folder_node("set"), "train")
    assert found is not None
    assert (len(found.names), found.labels, listed(folder_node("set"), "unlabeled")) == (10, None, None)


def test_unlabeled_images_are_trained_on_where_only_the_test_images_have_labels() -> None:
    files("unlabeled test/a test/b")
    found = listed(folder_node("set"), "train")
    assert found is not None
    assert (len(found.names), found.labels) == (5, None)


def test_a_folder_without_training_images_says_so() -> None:
    files("val/a test/a test/b")
    with pytest.raises(UserError, match=r"set has no images to train on, only test/, val/"):
        listed(folder_node("set"), "train")
    assert read("test") == {"a": 5, "b": 5}


@pytest.mark.parametrize("fraction", [0.4, 1.0])
def test_the_test_fraction_is_a_key(fraction: float) -> None:
    files("a b")
    assert read("test", test_fraction=fraction) == {"a": 5 * fraction, "b": 5 * fraction}


def test_names_of_classes_are_compared_in_any_form_of_unicode() -> None:
    files(f"train/th{chr(0xE9)} train/b test/the{chr(0x301)}")
    assert read("test") == {f"th{chr(0xE9)}": 5, "b": 0}
    assert read("train", classes=[f"the{chr(0x301)}", "b"]) == {f"th{chr(0xE9)}": 5, "b": 5}


@pytest.mark.skipif(os.geteuid() == 0, reason="root opens every folder")
def test_folders_that_cannot_be_opened_are_named(capfd: pytest.CaptureFixture[str]) -> None:
    start_logging()
    files("a b a/closed")
    Path("set/a/closed").chmod(0)
    try:
        assert read("train") == {"a": 4, "b": 4}
    finally:
        Path("set/a/closed").chmod(0o755)
    assert "1 folder cannot be opened: set/a/closed (Permission denied)" in capfd.readouterr().err


def test_a_folder_with_other_files_only_says_what_they_are() -> None:
    files("a/1.dng a/2.dng a/3.txt")
    with pytest.raises(UserError, match=r"no images in set .*3 files of other formats: 2 \.dng, 1 \.txt; convert them"):
        read("train")


@pytest.mark.parametrize(
    "layout",
    ["Data/train/a Data/test/a figures", "2024-05-01/train/a 2024-05-02/test/b", "daisy/train daisy/test rose/train",
     "bottle/train/good bottle/test/good cable/train/good"],
)  # fmt: skip
def test_splits_inside_folders_are_refused_and_never_merged(layout: str) -> None:
    files(layout)
    with pytest.raises(UserError, match=r"contains (train|test)/.*: set dataset.root to the folder with the splits"):
        read("train")


@pytest.mark.parametrize(("fraction", "split", "words"), [
    (1.0, "train", "dataset.test_fraction=1 leaves no training image of a, b"),
    (0.05, "test", r"set: too few images for a test split \(dataset.test_fraction=0.05 of each class\)"),
])  # fmt: skip
def test_a_fraction_that_leaves_no_images_is_one_line(fraction: float, split: str, words: str) -> None:
    files("a b")
    with pytest.raises(UserError, match=words):
        read(split, test_fraction=fraction)


def test_classes_without_given_validation_images_get_their_own(photos: Path) -> None:
    for name in ("train/temple", "train/flower", "train/other", "val/other", "test/temple"):
        shutil.copytree(photos / "temple", f"set/{name}")
    train, val = load_split(source_node("folder", "set", classes=["temple", "flower"], val_fraction=0.1))
    assert val is not None
    assert (len(train), len(val)) == (54, 6)


OF_AN_OBJECT = r"([^/]+)_\d+\."


def objects(names: list[str]) -> set[str]:
    return {n.rpartition("_")[0] for n in names}


def test_groups_are_on_one_side_of_the_hold_out_and_of_validation(capfd: pytest.CaptureFixture[str]) -> None:
    start_logging()
    frames("set", 10, 4, 0)
    Path("set/cup/lone.png").write_bytes(Path("set/cup/cup0_00.png").read_bytes())
    node = source_node("folder", "set", groups=OF_AN_OBJECT)
    train, val = load_split(node)
    assert val is not None
    sides = [train.names, val.names, load_test(node).names]
    assert sorted(n for names in sides for n in names) == sorted(load_test({**node, "test_fraction": 1.0}).names)
    for a, b in itertools.combinations(sides, 2):
        assert not objects(a) & objects(b)
    assert [len(train), len(val), len(sides[2])] == [53, 12, 16]
    err = capfd.readouterr().err
    line = "set: 21 groups of images (dataset.groups), the largest bowl0 with 4; 1 image in no group"
    assert err.count(line) == 1
    assert "Validation: 12 images in 3 groups (dataset.groups)." in err


def test_the_folder_of_the_split_is_not_part_of_the_path(capfd: pytest.CaptureFixture[str]) -> None:
    """So that an expression finds the same groups in every split, and the path of the root never counts."""
    start_logging()
    for split, first in (("train", 0), ("val", 3), ("test", 3)):
        frames(f"train_9.png/set/{split}", 4, 2, first, "{object}/{frame}.png", first=first)
    node = folder_node("train_9.png/set", groups="^[^/]+/([^/]+)/")
    train, val = load_split(node)
    assert val is not None
    named = [{*d.groups} for d in (train, val, load_test(node))]  # type: ignore[misc]
    assert named == [{f"{c}{i}" for c in ("bowl", "cup") for i in range(k, k + 4)} for k in (0, 3, 3)]
    err = capfd.readouterr().err
    assert "train/ and val/ have 2 groups in common (dataset.groups): bowl3, cup3" in err
    assert "val/ and test/ have 8 groups in common (dataset.groups): bowl3, bowl4, bowl5" in err


def test_unreadable_images_leave_the_groups_of_the_others() -> None:
    frames("set/train", 3, 3, 0)
    frames("set/test", 1, 1, 1)
    Path("set/train/bowl/bowl1_01.png").write_bytes(b"damaged")
    train, _ = load_split(folder_node("set", groups=OF_AN_OBJECT, max_bad_fraction=0.5, classes=["cup", "bowl"]))
    assert train.groups is not None
    assert [*train.groups] == [n.split("/")[1].split("_")[0] for n in train.names]
    assert len(train) == 17


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("frame", "matches no image"),
        ("png", "puts all 24 images into one group"),
        ("(bowl|cup)/", "each class into one"),
    ],
)
def test_expressions_that_match_nothing_everything_or_classes_are_refused_before_training(
    pattern: str, words: str
) -> None:
    frames("set", 4, 3, 0)
    for split in ("train", "test"):
        with pytest.raises(UserError, match=words) as error:
            load(folder_node("set", groups=pattern), split)
        assert len(str(error.value).splitlines()) == 1


def test_classes_in_one_group_have_no_validation_images_and_are_named(capfd: pytest.CaptureFixture[str]) -> None:
    start_logging()
    frames("set/train", 4, 3, 0)
    frames("set/test", 1, 3, 1)
    node = source_node("folder", "set", groups="(bowl[0-9]+|cup)[0-9]*_")
    train, val = load_split(node)
    assert val is not None
    assert {*train.labels.tolist()} == {0, 1}  # type: ignore[union-attr]
    assert {*val.labels.tolist()} == {0}  # type: ignore[union-attr]
    assert "No validation images of cup: too few groups (dataset.groups)" in capfd.readouterr().err
    with pytest.raises(UserError, match="each class into one group; a validation set needs at least two"):
        load_split({**node, "groups": "/(bowl|cup)"})
