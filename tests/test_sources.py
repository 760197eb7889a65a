import shutil
from pathlib import Path
from typing import Any

import pytest

from sslrun.base.console import start_logging
from sslrun.base.errors import UserError
from sslrun.data.dataset import load, load_test, load_train

SHARED = {"image_size": 16, "val_fraction": 0.2}


def node(name: str, root: Path | str | None, **more: Any) -> dict[str, Any]:
    return {
        "_target_": f"sslrun.data.sources.{name}.{name}",
        "root": None if root is None else str(root),
        **SHARED,
        **more,
    }


# --------------------------------------------------------------------------------------------------------- folders


def test_digits_are_split_without_overlap_and_completely() -> None:
    train, val = load_train(node("digits", None))
    test = load_test(node("digits", None))
    assert val is not None
    names = [set(d.names) for d in (train, val, test)]
    assert len(set.union(*names)) == sum(map(len, names)) == 1797
    assert train.images[:2].shape == (2, 3, 16, 16)
    assert train.class_names == [str(i) for i in range(10)]


def test_one_folder_per_class_is_split_for_the_user(photos: Path) -> None:
    train, val = load_train(node("folder", photos))
    test = load_test(node("folder", photos))
    assert val is not None
    assert [len(train), len(val), len(test)] == [38, 10, 12]
    assert train.class_names == ["flower", "temple"]
    assert not set(train.names) & set(test.names)
    assert sorted(load_test(node("folder", photos)).names) == sorted(test.names)
    assert all(n.startswith(train.class_names[c]) for n, c in zip(train.names, train.labels.tolist(), strict=True))  # type: ignore[union-attr]


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_train_and_test_folders(photos: Path, test_name: str) -> None:
    shutil.copytree(photos, "set/train")
    shutil.copytree(photos / "temple", f"set/{test_name}/temple")
    shutil.copytree(photos / "flower", "set/unlabeled")
    train, _ = load_train(node("folder", "set", val_fraction=0.0))
    assert len(train) == 60
    test = load_test(node("folder", "set"))
    assert len(test) == 30
    assert set(test.labels.tolist()) == {1}  # type: ignore[union-attr]
    more = load(node("folder", "set"), "unlabeled")
    assert more is not None
    assert len(more) == 30
    assert more.labels is None
    Path(f"set/{test_name}/temple").rename(f"set/{test_name}/castle")
    with pytest.raises(UserError, match="castle"):
        load_test(node("folder", "set"))


def test_case_47_piles_without_labels_flat_and_nested(photos: Path) -> None:
    shutil.copytree(photos / "flower", "flat")
    shutil.copytree(photos, "nested/2021/summer")
    for root, n in (("flat", 30), ("nested", 60)):
        train, val = load_train(node("folder", root))
        assert (len(train), val, train.labels) == (n, None, None)
        with pytest.raises(UserError, match="no labels"):
            load_test(node("folder", root))


def test_per_class_of_folders_is_per_class_and_a_stray_picture_is_named(
    photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    start_logging()
    shutil.copytree(photos, "set")
    shutil.copytree(photos / "flower", "set/deep/summer")
    assert load_train(node("folder", "set"))[0].class_names == ["deep", "flower", "temple"]
    shutil.copy(photos / "flower/flower 00.jpg", "set/cover.jpg")
    assert load_train(node("folder", "set"))[0].labels is None
    assert "cover.jpg" in capfd.readouterr().err


def test_a_wrapper_folder_is_stepped_into(photos: Path) -> None:
    shutil.copytree(photos, "download/my photos")
    assert load_train(node("folder", "download"))[0].class_names == ["flower", "temple"]


@pytest.mark.parametrize(("make", "words"), [(None, "no such folder"), ("empty", "no pictures")])
def test_case_45_missing_and_empty_folders(make: str | None, words: str) -> None:
    if make:
        Path(make).mkdir()
    with pytest.raises(UserError, match=words):
        load_train(node("folder", make or "nowhere"))


def test_classes_a_subset_in_the_order_given(photos: Path) -> None:
    train, _ = load_train(node("folder", photos, classes=["temple"]))
    assert train.class_names == ["temple"]
    train, _ = load_train(node("folder", photos, classes=["temple", "flower"]))
    assert train.class_names == ["temple", "flower"]
    assert all(n.startswith("temple") == (c == 0) for n, c in zip(train.names, train.labels.tolist(), strict=True))  # type: ignore[union-attr]


def test_classes_joined_in_groups() -> None:
    train, _ = load_train(node("digits", None, classes={"round": ["0", "8"], "straight": ["1", "7", "4"]}))
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
        load_train(node("folder", photos, classes=classes))


def test_max_images_caps_training_and_not_test(photos: Path) -> None:
    train, val = load_train(node("folder", photos, max_images=20))
    assert len(train) + len(val or ()) == 20
    assert len(load_test(node("folder", photos))) == 12
    flat, _ = load_train(node("folder", photos / "flower", max_images=7))
    assert len(flat) == 7


def test_fingerprints_tell_data_apart(photos: Path) -> None:
    a, _ = load_train(node("folder", photos))
    assert a.fingerprint() == load_train(node("folder", photos))[0].fingerprint()
    assert a.fingerprint() != load_train(node("folder", photos, image_size=15))[0].fingerprint()
    assert a.fingerprint() != load_train(node("folder", photos, split_seed=1))[0].fingerprint()


@pytest.mark.parametrize(("train_name", "test_name"), [("Train", "Test"), ("Training", "Testing"), ("TRAIN", "valid")])
def test_split_folders_by_other_names(photos: Path, train_name: str, test_name: str) -> None:
    shutil.copytree(photos, f"set/{train_name}")
    shutil.copytree(photos / "temple", f"set/{test_name}/temple")
    train, _ = load_train(node("folder", "set", val_fraction=0.0))
    assert (len(train), train.class_names) == (60, ["flower", "temple"])
    assert len(load_test(node("folder", "set"))) == 30
