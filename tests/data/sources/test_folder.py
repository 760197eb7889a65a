"""A user's folder of images, in all supported layouts."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from sslrun.base.console import start_logging
from sslrun.base.errors import UserError
from sslrun.data.dataset import listed, load, load_test, load_train
from sslrun.data.decode import find_images
from tests.helpers import folder_node, source_node


def test_one_folder_per_class_is_split_into_train_and_test(photos: Path) -> None:
    train, val = load_train(source_node("folder", photos))
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
    train, _ = load_train(source_node("folder", "set", val_fraction=0.0))
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
    shutil.copytree(photos, "nested/2021/summer")
    for root, n in (("flat", 30), ("nested", 60)):
        train, val = load_train(source_node("folder", root))
        assert (len(train), val, train.labels) == (n, None, None)
        with pytest.raises(UserError, match="no labels"):
            load_test(source_node("folder", root))


def test_one_folder_per_class_and_a_stray_image_is_reported(photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    start_logging()
    shutil.copytree(photos, "set")
    shutil.copytree(photos / "flower", "set/deep/summer")
    assert load_train(source_node("folder", "set"))[0].class_names == ["deep", "flower", "temple"]
    shutil.copy(photos / "flower/flower 00.jpg", "set/cover.jpg")
    assert load_train(source_node("folder", "set"))[0].labels is None
    assert "cover.jpg" in capfd.readouterr().err


def test_a_wrapper_folder_is_descended_into(photos: Path) -> None:
    shutil.copytree(photos, "download/my photos")
    assert load_train(source_node("folder", "download"))[0].class_names == ["flower", "temple"]


@pytest.mark.parametrize(("make", "words"), [(None, "no such folder"), ("empty", "no images")])
def test_case_45_missing_and_empty_folders(make: str | None, words: str) -> None:
    if make:
        Path(make).mkdir()
    with pytest.raises(UserError, match=words):
        load_train(source_node("folder", make or "nowhere"))


@pytest.mark.parametrize(("train_name", "test_name"), [("Train", "Test"), ("Training", "Testing"), ("TRAIN", "valid")])
def test_other_names_of_split_folders(photos: Path, train_name: str, test_name: str) -> None:
    shutil.copytree(photos, f"set/{train_name}")
    shutil.copytree(photos / "temple", f"set/{test_name}/temple")
    train, _ = load_train(source_node("folder", "set", val_fraction=0.0))
    assert (len(train), train.class_names) == (60, ["flower", "temple"])
    assert len(load_test(source_node("folder", "set"))) == 30


def test_images_of_every_kind_in_one_folder(photos: Path) -> None:
    with Image.open(photos / "flower/flower 01.jpg") as image:
        for c in ("a", "b"):
            for suffix in ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "TIFF", "PNG"):
                Path("set", c).mkdir(parents=True, exist_ok=True)
                image.save(Path("set", c, f"x.{suffix}"))
    assert len(find_images("set")) == 18
    assert len(load_train(folder_node("set"))[0]) == 18 - 2 * round(0.2 * 9)


def test_unknown_test_classes_get_the_nearest_name(tmp_path: Path) -> None:
    for name in ("train/flat", "train/house", "test/flatt", "test/house"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
    with pytest.raises(UserError, match=r"classes that are missing in .*train: flatt; did you mean flat\?$"):
        load_test(source_node("folder", tmp_path))
