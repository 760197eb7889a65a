"""Which column of a label file says what, and which row belongs to which image."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from sslrun.base.errors import UserError
from sslrun.data.label_file import FileLabels, find_label_file, read_labels

IMAGES = [f"{i:03d}.jpg" for i in range(30)]
CLASSES = ["cat", "dog", "owl"]


def written(text: str, name: str = "labels.csv") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def table(header: str, *columns: Any) -> Path:
    """Write a CSV file with these columns, functions of the row's number."""
    rows = [",".join(str(column(i)) for column in columns) for i in range(len(IMAGES))]
    return written("\n".join([*[header] * bool(header), *rows]))


def read(path: Path, **given: Any) -> FileLabels:
    columns: Any = given
    return read_labels(path, IMAGES, columns, "photos")


def cat(i: int) -> str:
    return CLASSES[i % 3]


EXPECTED = [cat(i) for i in range(30)]


@pytest.mark.parametrize(
    ("header", "columns", "summary"),
    [
        ("file,label", (lambda i: IMAGES[i], cat), "file from file, label from label"),
        ("species,id", (cat, lambda i: IMAGES[i][:3]), "file from id, label from species"),
        ("", (lambda i: IMAGES[i], cat), "file from 1, label from 2"),
        (",image,kind", (int, lambda i: f"photos/{IMAGES[i]}", cat), "file from image, label from kind"),
        (
            "a,b,label,c",
            (lambda i: IMAGES[i], lambda i: i * 7, cat, lambda i: "x"),
            "file from a, label from label; not read: b, c",
        ),
        (
            "width,Class,name",
            (lambda i: 640, cat, lambda i: IMAGES[i]),
            "file from name, label from Class; not read: width",
        ),
    ],
)
def test_columns_are_recognized_by_content_and_name(header: str, columns: Any, summary: str) -> None:
    found = read(table(header, *columns))
    assert (found.labels, found.summary, found.notes) == (EXPECTED, summary, [])


def test_numbers_as_labels_do_not_pass_for_file_names() -> None:
    names = [f"{i}.png" for i in range(30)]
    path = table("id,digit", int, lambda i: i % 10)
    assert read_labels(path, names).labels == [str(i % 10) for i in range(30)]


def test_labels_keep_leading_zeros_lose_spaces_and_are_normalized() -> None:
    path = written("file,label\n000.jpg,001\n001.jpg, cat \n002.jpg,\n003.jpg,the\u0301\n004.jpg,   \n")
    assert read(path).labels[:5] == ["001", "cat", None, "thé", None]


def test_columns_can_be_given_by_name_or_number() -> None:
    path = table("image,first,second,patient", lambda i: IMAGES[i], cat, lambda i: "x" * (1 + i % 2), lambda i: i // 3)
    with pytest.raises(UserError, match=r"which column is the label: first, second, patient\? Set dataset.columns"):
        read(path)
    assert read(path, label="first").labels == EXPECTED
    assert set(read(path, label=3).labels) == {"x", "xx"}
    assert read(path, label="first", group="patient").groups == [str(i // 3) for i in range(30)]


def test_a_column_of_splits_is_recognized_and_does_not_become_the_label() -> None:
    splits = ["Train", "training", "val", "TEST", ""]
    path = table("file,species,set", lambda i: IMAGES[i], cat, lambda i: splits[i % 5])
    assert read(path).splits[:5] == ["train", "train", "val", "test", None]
    path = table("file,set", lambda i: IMAGES[i], lambda i: f"set{i % 3}")  # the only other column
    assert set(read(path).labels) == {"set0", "set1", "set2"}
    path = table("file,label,fold", lambda i: IMAGES[i], cat, lambda i: i % 5)
    with pytest.raises(UserError, match="column fold must say train, val or test, found 0, 1, 2 and 2 more"):
        read(path, split="fold")


def test_rows_without_an_image_are_counted_and_the_first_are_named() -> None:
    path = table("file,label", lambda i: IMAGES[i] if i < 25 else f"gone{i}.jpg", cat)
    found = read(path)
    assert found.labels == [*EXPECTED[:25], *[None] * 5]
    assert found.notes == ["labels.csv: 5 rows without an image: gone25.jpg, gone26.jpg, gone27.jpg and 2 more"]


def test_the_same_row_twice_is_one_label_and_two_labels_are_refused() -> None:
    assert read(written("file,label\n000.jpg,cat\n000.jpg,cat\n001.jpg,dog\n")).labels[:2] == ["cat", "dog"]
    message = "labels.csv: 1 image with more than one label: 000.jpg (cat, dog)"
    with pytest.raises(UserError, match=re.escape(message)):
        read(written("file,label\n000.jpg,cat\n000.jpg,dog\n001.jpg,dog\n"))


def test_a_name_that_fits_two_images_is_refused() -> None:
    path = written("file,label\n1,cat\n2,dog\n1,cat\n3.jpg,dog\n")
    message = "labels.csv: 1 fits a/1.jpg and b/1.jpg (and 1 other name): write paths below photos"
    with pytest.raises(UserError, match=re.escape(message)):
        read_labels(path, ["a/1.jpg", "b/1.jpg", "a/2.jpg", "a/3.jpg", "c/3.jpg"], {}, "photos")


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        ("file,label\nx.jpg,cat\ny.jpg,dog\n", {}, "labels.csv names no image of photos: its first row is x.jpg, cat, "
         "an image is 000.jpg; columns: file, label (dataset.columns={file: ...})"),
        ("file\n000.jpg\n001.jpg\n", {}, "labels.csv has no column with labels. Columns: file"),
        ("file,label\n000.jpg,cat\n", {"label": "kind"}, "labels.csv has no column kind (dataset.columns, label)"),
        ("file,label\n000.jpg,cat\n", {"label": "lable"}, "did you mean label?"),
        ("file,label,label\n000.jpg,cat,dog\n", {"label": "label"}, "labels.csv has more than one column label"),
        ("file,label\n000.jpg,\n001.jpg,\n", {}, "labels.csv: no image has a label in column label"),
        ("file,label\n", {}, "labels.csv has only a header: file, label"),
        ("file,label\n" + "".join(f"{n},{i}\n" for i, n in enumerate(IMAGES)), {},
         "column label of labels.csv gives 30 classes for 30 images, too many to learn: set dataset.columns"),
        ('{"file": "000.jpg", "label": ["cat", "dog"]}\n', {"label": "label"},
         "labels.csv: column label has lists or objects; a label must be text"),
    ],
)  # fmt: skip
def test_a_label_file_that_does_not_fit_is_one_line(text: str, given: Any, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as error:
        read(written(text), **given)
    assert "\n" not in str(error.value)


def test_the_label_file_in_or_next_to_the_folder_is_used() -> None:
    top = Path("photos")
    top.mkdir()
    rows = "".join(f"{n},{cat(i)}\n" for i, n in enumerate(IMAGES))
    written(
        "image,class_1,confidence_1,unsure,error\n" + "".join(f"{n},cat,0.9,,\n" for n in IMAGES), "predictions.csv"
    )
    written("rank,image,copy\n" + "".join(f"{i},{n},1_{n}\n" for i, n in enumerate(IMAGES)), "suggestions.csv")
    written("file,weight\n" + "".join(f"{n},{i}\n" for i, n in enumerate(IMAGES)), "weights.csv")
    written("year,sum\n2020,1\n", "other.csv")
    written("", "photos/empty.csv")
    file, unused = find_label_file(top, IMAGES)
    assert (file, unused) == (None, ["photos/empty.csv is empty"])  # those next to the folder may be of anything
    written(rows, "labels.csv")
    assert find_label_file(top, IMAGES) == (Path("labels.csv"), [])
    assert find_label_file(top, IMAGES, next_to=False)[0] is None
    written(rows.replace(",", "\t"), "photos/species.tsv")
    assert find_label_file(top, IMAGES)[0] == Path("photos/species.tsv")
    written(rows, "photos/labels.csv")
    message = "photos/labels.csv, photos/species.tsv are label files: choose one with dataset.labels=..."
    with pytest.raises(UserError, match=re.escape(message)):
        find_label_file(top, IMAGES)


def test_the_folder_may_be_the_working_directory() -> None:
    Path("photos").mkdir()
    written("".join(f"{n},{cat(i)}\n" for i, n in enumerate(IMAGES)), "labels.csv")
    os.chdir("photos")
    found, _ = find_label_file(Path(), IMAGES)
    assert found is not None
    assert found.samefile("../labels.csv")


def test_row_numbers_are_not_taken_for_file_names() -> None:
    """As pandas writes them: with more of them than ids that name images."""
    names = [f"{i}.png" for i in range(30)]
    rows = [f"{i},{(i * 37) % 500},{cat((i * 37) % 500)}" for i in range(300)]
    found = read_labels(written("\n".join([",id,label", *rows])), names)
    assert found.summary == "file from id, label from label"
    assert all(label in (None, cat(i)) for i, label in enumerate(found.labels))
    assert any(found.labels)


@pytest.mark.parametrize("other", ["tset", "holdout", "0"])
def test_a_column_of_splits_with_another_value_is_refused(other: str) -> None:
    path = table("file,label,split", lambda i: IMAGES[i], cat, lambda i: other if i == 7 else ("train", "test")[i % 2])
    with pytest.raises(UserError, match=f"labels.csv: column split must say train, val or test, found {other}$"):
        read(path)


def test_a_column_that_says_no_split_is_named_as_not_read() -> None:
    path = table("file,label,split,note", lambda i: IMAGES[i], cat, lambda i: i % 5, lambda i: "x")
    found = read(path)
    assert (found.splits, found.summary) == ([None] * 30, "file from file, label from label; not read: split, note")


def test_values_for_none_are_no_class_and_names_that_look_alike_are_named() -> None:
    values = ["nan", "NA", "Cat", "cat", "great dane", "Great  Dane", "owl", "owl"]
    found = read(table("file,label", lambda i: IMAGES[i], lambda i: values[i % 8]))
    assert found.labels[:8] == [None, None, *values[2:]]
    assert found.notes == [
        "labels.csv: 8 rows with NA, nan as label are read as without one",
        "labels.csv: names that differ only in letter case or spaces: Cat, cat; Great  Dane, great dane",
    ]


def test_given_columns_are_used_to_find_the_file() -> None:
    Path("photos").mkdir()
    rows = "".join(f"{n},{cat(i)},{i % 2}\n" for i, n in enumerate(IMAGES))
    written(f"file,a,b\n{rows}", "photos/table.csv")
    assert find_label_file(Path("photos"), IMAGES) == (
        None,
        ["photos/table.csv: which column is the label: a, b? Set dataset.columns={label: ...}"],
    )
    assert find_label_file(Path("photos"), IMAGES, {"label": "a"}) == (Path("photos/table.csv"), [])


def test_a_sample_of_predictions_is_not_taken_for_labels() -> None:
    Path("photos").mkdir()
    rows = "".join(f"{n},{cat(i)}\n" for i, n in enumerate(IMAGES))
    written(f"id,breed\n{rows}", "photos/sample_submission.csv")
    written("id,x\n" + "".join(f"{n},1\n" for n in IMAGES), "photos/constant.csv")
    file, unused = find_label_file(Path("photos"), IMAGES)
    assert file is None
    assert unused == [
        "photos/constant.csv: column x has a single value",
        "photos/sample_submission.csv is a sample of predictions, by its name",
    ]


@pytest.mark.parametrize("groups", ["label", "a"])
def test_labels_are_not_groups(groups: str) -> None:
    path = written(f"file,{groups}\n000.jpg,cat\n001.jpg,dog\n")
    with pytest.raises(UserError, match=f"dataset.groups={groups} is the column of the labels|no column with labels"):
        read_labels(path, IMAGES, {}, "photos", groups)


def test_a_file_that_is_not_in_utf8_is_named() -> None:
    Path("labels.csv").write_bytes("file,label\n000.jpg,thé\n001.jpg,cat\n".encode("cp1252"))
    found = read(Path("labels.csv"))
    assert found.labels[0] == "thé"
    assert found.notes == ["labels.csv is not in UTF-8; it is read as Windows-1252"]
