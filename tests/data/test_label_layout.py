"""Folders whose labels are in a label file or in file names."""

import re
from pathlib import Path
from typing import Any

import pytest

from sslrun.base.console import start_logging
from sslrun.base.errors import UserError
from sslrun.data import label_layout
from sslrun.data.dataset import listed
from sslrun.data.label_file import read_labels
from sslrun.data.sources.source import Listing
from tests.helpers import folder_node


def images(*names: str) -> None:
    for name in names:
        path = Path("set", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def labels(text: str, name: str = "set/labels.csv") -> None:
    Path(name).write_text(text.replace(" ", "\n"))


def read(split: Any, **keys: Any) -> dict[str, list[str]] | list[str] | None:
    """Return the names of a split's images by class, or all of them without labels."""
    listing = listed(folder_node("set", **keys), split)
    return None if listing is None else by_class(listing)


def by_class(listing: Listing) -> dict[str, list[str]] | list[str]:
    if listing.labels is None:
        return listing.names
    of_class: dict[str, list[str]] = {c: [] for c in listing.class_names}
    for name, c in zip(listing.names, listing.labels, strict=True):
        of_class[listing.class_names[c]].append(name)
    return of_class


def everything(**keys: Any) -> dict[str, list[str]]:
    """Return all labeled images by class."""
    found = read("test", test_fraction=1.0, **keys)
    assert isinstance(found, dict)
    return found


FLAT = [f"{i}.jpg" for i in range(10)]
ROWS = " ".join(f"{i}.jpg,{'ab'[i % 2]}" for i in range(8))  # of the first 8


def test_a_flat_folder_with_a_label_file(capfd: pytest.CaptureFixture[str]) -> None:
    start_logging()
    images(*FLAT)
    labels(f"file,species {ROWS} 8.jpg,")
    assert everything() == {"a": ["0.jpg", "2.jpg", "4.jpg", "6.jpg"], "b": ["1.jpg", "3.jpg", "5.jpg", "7.jpg"]}
    assert read("unlabeled") == ["8.jpg", "9.jpg"]
    train, test = read("train"), read("test")
    assert isinstance(train, dict)
    assert isinstance(test, dict)
    assert [len(train["a"]), len(test["a"])] == [3, 1]
    assert not {*train["a"], *train["b"]} & {*test["a"], *test["b"]}
    err = capfd.readouterr().err
    assert (
        "8 images, 2 classes; labels from set/labels.csv (file from file, label from species); 2 unlabeled images"
        in err
    )
    assert "other formats" not in err


@pytest.mark.parametrize("given", ["labels.csv", "mine/labels.csv", "set/labels.csv"])
def test_a_given_path_begins_in_the_working_directory_or_else_in_the_folder(given: str) -> None:
    images(*FLAT)
    Path("mine").mkdir()
    labels(f"file,label {ROWS}", "mine/labels.csv")
    labels("file,label 9.jpg,c 8.jpg,d")
    found = everything(labels=given)
    assert list(found) == (["a", "b"] if given.startswith("mine") else ["c", "d"])


def test_a_given_file_that_is_missing_is_one_line() -> None:
    images(*FLAT)
    with pytest.raises(UserError, match=r"dataset.labels=no.csv: no such file in the working directory or in set$"):
        read("train", labels="no.csv")
    with pytest.raises(UserError, match=r"dataset.columns needs a label file, found none in or next to set"):
        read("train", columns={"label": "species"})


def test_class_folders_are_the_labels_unless_a_label_file_is_given(capfd: pytest.CaptureFixture[str]) -> None:
    start_logging()
    images("x/1.jpg", "x/2.jpg", "y/3.jpg", "y/4.jpg")
    labels("file,label 1,new 2,old 3,new 4,old")
    assert list(everything()) == ["x", "y"]
    message = "set/labels.csv is not read, since the folders are classes; dataset.labels=set/labels.csv reads it"
    assert message in capfd.readouterr().err
    assert everything(labels="set/labels.csv") == {"new": ["x/1.jpg", "y/3.jpg"], "old": ["x/2.jpg", "y/4.jpg"]}


def test_splits_from_a_column() -> None:
    images(*FLAT)
    splits = ["train"] * 5 + ["val"] * 2 + ["test"] * 2 + ["unlabeled"]
    labels("file,label,split " + " ".join(f"{n},{'ab'[i % 2]},{splits[i]}" for i, n in enumerate(FLAT)))
    listing = listed(folder_node("set"), "train")
    assert listing is not None
    assert listing.validation is not None
    assert [n for n, v in zip(listing.names, listing.validation, strict=True) if v] == ["6.jpg", "5.jpg"]
    assert read("test") == {"a": ["8.jpg"], "b": ["7.jpg"]}
    assert read("unlabeled") == ["9.jpg"]


def test_folders_for_test_and_validation_keep_their_role(capfd: pytest.CaptureFixture[str]) -> None:
    start_logging()
    images("train/1.jpg", "train/2.jpg", "train/3.jpg", "test/4.jpg", "test/5.jpg", "test/6.jpg", "val/7.jpg")
    labels("id,label 1,a 2,b 4,a 5,b 7,b")
    assert read("test") == {"a": ["test/4.jpg"], "b": ["test/5.jpg"]}
    assert read("unlabeled") == ["train/3.jpg"]  # never of test/
    train = read("train")
    assert train == {"a": ["train/1.jpg"], "b": ["train/2.jpg", "val/7.jpg"]}
    assert "1 image for test without a label are left out" in capfd.readouterr().err


def test_labels_of_a_train_folder_next_to_a_test_folder_without_any() -> None:
    images(*[f"train_images/{n}" for n in FLAT], *[f"test_images/9{n}" for n in FLAT])
    labels(f"id_code,diagnosis {ROWS.replace('.jpg', '')}", "set/train.csv")
    assert {c: len(n) for c, n in everything().items()} == {"a": 4, "b": 4}
    assert read("unlabeled") == ["train_images/8.jpg", "train_images/9.jpg"]


def test_labels_in_file_names(capfd: pytest.CaptureFixture[str]) -> None:
    start_logging()
    images("Great_Dane_1.jpg", "Great_Dane_22.jpg", "more/pug_3.jpg", "pug_x_4.jpg", "cover.jpg")
    expected = {
        "Great_Dane": ["Great_Dane_1.jpg", "Great_Dane_22.jpg"],
        "pug": ["more/pug_3.jpg"],
        "pug_x": ["pug_x_4.jpg"],
    }
    assert everything(label_pattern=r"^(.+)_\d+") == expected
    assert everything(label_pattern=r"Dane|pug") == {
        "Dane": ["Great_Dane_1.jpg", "Great_Dane_22.jpg"], "pug": ["more/pug_3.jpg", "pug_x_4.jpg"],
    }  # fmt: skip
    assert read("unlabeled", label_pattern=r"^(.+)_\d+") == ["cover.jpg"]
    err = capfd.readouterr().err
    assert "1 file name not matched by dataset.label_pattern: cover.jpg" in err
    assert r"labels from file names (^(.+)_\d+)" in err


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"label_pattern": "("}, "dataset.label_pattern=( is not a regular expression"),
        ({"label_pattern": r"(\d+)_z"}, r"dataset.label_pattern=(\d+)_z matches no file name, such as 0.jpg"),
        ({"label_pattern": "()", "labels": "l.csv"}, "remove dataset.labels and dataset.columns"),
        ({"label_pattern": r"(\d+)", "image_size": 8}, ""),
    ],
)
def test_expressions_for_labels_that_do_not_fit_are_one_line(keys: Any, message: str) -> None:
    images(*FLAT)
    if not message:
        assert len(everything(**keys)) == 10
        images(*[f"{i}.jpg" for i in range(10, 30)])
        message = r"dataset.label_pattern=(\d+) gives 30 classes for 30 images, too many to learn"
    with pytest.raises(UserError, match=re.escape(message)):
        read("train", **keys)


def test_folders_that_are_unclear_as_classes_can_have_a_label_file() -> None:
    images("site1/train/1.jpg", "site1/test/2.jpg", "site2/train/3.jpg", "site2/test/4.jpg")
    with pytest.raises(UserError, match=r"set dataset.root to the folder with the splits"):
        read("train")
    labels("file,label,split 1.jpg,a,train 2.jpg,a,test 3.jpg,b,train 4.jpg,b,test")
    assert read("test", labels="set/labels.csv") == {"a": ["site1/test/2.jpg"], "b": ["site2/test/4.jpg"]}


def test_a_label_file_as_the_root_is_one_line() -> None:
    images(*FLAT)
    labels(f"file,label {ROWS}")
    message = (
        "set/labels.csv is a file: set dataset.root to the folder of the images, and dataset.labels=set/labels.csv"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        listed(folder_node("set/labels.csv"), "train")


def test_the_users_folder_is_not_written_to() -> None:
    images(*FLAT)
    labels(f"file,label {ROWS}")
    before = sorted(str(p) for p in Path("set").rglob("*"))
    read("train")
    read("train", label_pattern=r"\d")
    assert sorted(str(p) for p in Path("set").rglob("*")) == before


def sides(**keys: Any) -> dict[str, set[str]]:
    """Return the groups of training and test images, from a listing that was checked to have them."""
    out = {}
    splits: tuple[Any, ...] = ("train", "test")
    for split in splits:
        listing = listed(folder_node("set", **keys), split)
        assert listing is not None
        assert listing.groups is not None
        out[split] = set(listing.groups)
    return out


@pytest.mark.parametrize("keys", [{"groups": "plot"}, {"columns": {"group": "plot"}}, {"groups": r"(\d)\d\.jpg"}])
def test_groups_from_a_column_or_an_expression_are_on_one_side(keys: Any) -> None:
    images(*[f"{i:02d}.jpg" for i in range(40)])
    labels("file,label,plot " + " ".join(f"{i:02d},{'ab'[i // 10 % 2]},{i // 5}" for i in range(40)))
    found = sides(**keys)
    assert not found["train"] & found["test"]
    assert found["train"] | found["test"] == {str(i) for i in range(4 if keys.get("groups", "")[:1] == "(" else 8)}


def test_images_without_a_group_in_the_column_are_groups_of_their_own(capfd: pytest.CaptureFixture[str]) -> None:
    start_logging()
    images(*[f"{i:02d}.jpg" for i in range(20)])
    labels("file,label,plot " + " ".join(f"{i:02d},{'ab'[i % 2]},{'' if i < 3 else i // 4}" for i in range(20)))
    found = sides(groups="plot")
    assert found["train"] | found["test"] == {"00.jpg", "01.jpg", "02.jpg", "0", "1", "2", "3", "4"}
    assert "8 groups of images (dataset.groups), the largest 1 with 4; 3 images in no group" in capfd.readouterr().err


def test_a_group_that_is_no_column_is_an_expression_and_named_as_such() -> None:
    images(*FLAT)
    labels(f"file,label {ROWS}")
    message = "dataset.groups=plot (no column of set/labels.csv): matches no image"
    with pytest.raises(UserError, match=re.escape(message)):
        read("train", groups="plot")
    labels("file,label,plot,x " + " ".join(f"{i}.jpg,{'ab'[i % 2]},1,{i}" for i in range(8)))
    with pytest.raises(UserError, match=r"dataset.groups=plot: puts all 8 images into one group \(1\)"):
        read("train", groups="plot")
    with pytest.raises(UserError, match=r"dataset.groups=plot and dataset.columns=\{group: x\} differ: remove one"):
        read("train", groups="plot", columns={"group": "x"})


def test_unlabeled_images_of_test_groups_are_left_out(capfd: pytest.CaptureFixture[str]) -> None:
    """Also without a label file; images that are in no group stay."""
    start_logging()
    images(*[f"{i // 4}_{i % 4}.jpg" for i in range(40)], "x.jpg")
    rows = " ".join(f"{i // 4}_{i % 4},{'ab'[i // 4 % 2]},p{i // 4}" for i in range(40) if i % 4 < 2)
    labels(f"file,label,plot {rows} " + " ".join(f"{i // 4}_{i % 4},,p{i // 4}" for i in range(40) if i % 4 > 1))
    assert len(read("unlabeled") or ()) == 21
    pool = read("unlabeled", groups="plot")
    of_test = {group[1:] for group in sides(groups="plot")["test"]}
    assert len(of_test) == 2
    assert sorted(pool or ()) == sorted(
        [f"{i // 4}_{i % 4}.jpg" for i in range(40) if i % 4 > 1 and str(i // 4) not in of_test] + ["x.jpg"]
    )
    assert "4 unlabeled images in groups of the test split are left out (dataset.groups)" in capfd.readouterr().err
    assert read("unlabeled", groups=r"^(\d)_") is not None
    Path("set/labels.csv").unlink()
    images(
        "train/a/1_0.jpg",
        "train/a/2_0.jpg",
        "train/b/3_0.jpg",
        "test/a/4_0.jpg",
        "unlabeled/4_1.jpg",
        "unlabeled/5.jpg",
    )
    assert read("unlabeled", groups=r"(\d+)_\d") == ["unlabeled/5.jpg"]


def test_a_single_folder_next_to_a_label_file_is_no_class() -> None:
    images(*[f"images/{n}" for n in FLAT])
    labels(f"file,species {ROWS}")
    assert {c: len(n) for c, n in everything().items()} == {"a": 4, "b": 4}
    images("thumbnails/x.jpg")
    Path("set/images").rename("set/all")
    assert list(everything(labels="labels.csv")) == ["a", "b"]


def test_why_a_file_is_not_read_as_labels(capfd: pytest.CaptureFixture[str]) -> None:
    start_logging()
    images(*FLAT)
    labels("file,kind,age " + " ".join(f"{n},{i % 3},{i}" for i, n in enumerate(FLAT)))
    assert read("train") == FLAT
    message = "set: not read as labels: set/labels.csv: which column is the label: kind, age? Set dataset.columns"
    assert message in capfd.readouterr().err
    assert list(everything(columns={"label": "kind"})) == ["0", "1", "2"]


def test_notes_on_folders_do_not_stay_when_a_label_file_replaces_them(capfd: pytest.CaptureFixture[str]) -> None:
    start_logging()
    images(*FLAT, "test/a.jpg", "test/b.jpg")
    labels(f"file,label {ROWS} test/a.jpg,a test/b.jpg,b")
    assert read("test") == {"a": ["test/a.jpg"], "b": ["test/b.jpg"]}
    err = capfd.readouterr().err
    assert "train/ 8 images, 2 classes; test/ 2 images, 2 classes" in err
    assert "outside" not in err
    assert "left out" not in err


def test_groups_with_a_label_file_are_searched_below_the_folders_of_splits() -> None:
    images(*[f"train/{i // 2}_{i % 2}.jpg" for i in range(8)], *[f"test/{i}_0.jpg" for i in range(8, 12)])
    names = [*(f"train/{i // 2}_{i % 2}" for i in range(8)), *(f"test/{i}_0" for i in range(8, 12))]
    labels("file,label " + " ".join(f"{n},{'ab'[i // 2 % 2]}" for i, n in enumerate(names)))
    found = sides(groups=r"^(\d+)_")
    assert found == {"train": {"0", "1", "2", "3"}, "test": {"8", "9", "10", "11"}}


def test_a_label_file_is_read_once_for_all_splits_and_again_when_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    images(*FLAT)
    labels(f"file,label {ROWS}")
    calls: list[Path] = []

    def counted(path: Path, *given: Any) -> Any:
        calls.append(path)
        return read_labels(path, *given)

    monkeypatch.setattr(label_layout, "read_labels", counted)
    read("train")
    read("test")
    read("unlabeled")
    assert len(calls) == 1
    labels(f"file,label {ROWS.replace('0.jpg,a', '0.jpg,bb')}")
    assert everything()["bb"] == ["0.jpg"]
    images("new.jpg")
    assert "new.jpg" in (read("unlabeled") or ())
    assert len(calls) == 3
