"""`sslrun suggest`, and the folders that it creates for sorting."""

import csv
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from sslrun.stages.suggest import _copies, _lay_out, _shortened
from tests.helpers import QUICK, Cli, runs, summary


def test_labels_are_written_into_the_table_half_of_it(in_world: Path, cli: Cli, photos: Path) -> None:
    run = runs("pretrain")[-1]
    answer = cli("suggest", str(photos), "n=24", "out=to_label", f"run={run}", *QUICK)
    assert answer.code == 0, answer.err
    assert "Either write the class of each image into to_label/labels.csv, or move" in answer.err
    with Path("to_label/labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["file"] for r in rows] == [f"to_sort/{p.name}" for p in sorted(Path("to_label/to_sort").iterdir())]
    assert {r["label"] for r in rows} == {""}
    for row in rows[:16]:
        row["label"] = Path(row["file"]).name.split("_")[1].split()[0]
    with Path("to_label/labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["file", "label"])
        writer.writeheader()
        writer.writerows(rows)
    done = cli("finetune", "to_label", f"init={run}", "mode=probe", *QUICK)
    assert done.code == 0, done.err
    made = summary(runs("finetune")[-1])
    assert made["config"]["dataset"]["root"] == "to_label"
    held_out = 16 - made["labels_total"]  # a fifth of each class, as test
    assert 2 <= held_out <= 5
    answer = cli("suggest", str(photos), "n=10", "labeled=to_label", "out=more", f"run={run}", *QUICK)
    assert not {p.name[3:] for p in Path("more/to_sort").iterdir()} & {Path(r["file"]).name[3:] for r in rows}


def test_from_suggestion_to_classifier(in_world: Path, cli: Cli, photos: Path) -> None:
    """As a user does it: choose, sort into folders, finetune, choose more."""
    unlabeled_folder = Path("unlabeled")
    unlabeled_folder.mkdir()
    for file in photos.rglob("*.jpg"):
        shutil.copy(file, unlabeled_folder)
    run = runs("pretrain")[-1]
    answer = cli(
        "suggest", str(unlabeled_folder), "n=24", "classes=[flower,temple]", "out=to_label", f"run={run}", *QUICK
    )
    assert answer.code == 0, answer.err
    names = answer.out.splitlines()
    assert len(set(names)) == 24
    copies = sorted(Path("to_label/to_sort").iterdir())
    assert [c.name for c in copies] == [f"{i:02d}_{Path(n).name}" for i, n in enumerate(names, 1)]
    assert [c.read_bytes() for c in copies] == [Path(n).read_bytes() for n in names]
    with (runs("suggest")[-1] / "suggestions.csv").open(newline="") as rows:
        assert [(r["image"], r["copy"]) for r in csv.DictReader(rows)] == [
            (n, c.name) for n, c in zip(names, copies, strict=True)
        ]
    assert Image.open(runs("suggest")[-1] / "figures/suggestions.png").size[0] == 10 * 112
    answer_before = cli("finetune", "to_label", f"init={run}", *QUICK)
    assert "to_label/labels.csv: column label is empty; write the class of each image there" in answer_before.err
    assert "folder to_label has no labels" in answer_before.err
    for copy in copies:
        copy.rename(Path("to_label/train") / copy.name.split("_")[1].split()[0] / copy.name)
    assert answer.lines()[-1] == f"Next: sslrun finetune to_label init={run}"
    done = cli("finetune", "to_label", f"init={run}", "mode=probe", *QUICK)
    assert done.code == 0, done.err
    assert "labels of folder" in done.err
    answer = cli("suggest", str(unlabeled_folder), "n=100", "labeled=to_label/train", "out=more", f"run={run}", *QUICK)
    assert answer.code == 0, answer.err
    assert not {Path(n).name for n in answer.out.splitlines()} & {Path(n).name for n in names}
    assert len(answer.out.splitlines()) == 60 - 24
    first, second = map(summary, runs("suggest"))
    assert (first["images"], first["suggested"], first["of_run"]) == (60, 24, str(run))
    assert (first["config"]["out"], first["config"]["run"]) == ("to_label", str(run))
    assert (second["images"], second["suggested"]) == (60, 36)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("place", ["all/labels.csv", "all.csv", "all/2024-05-01/labels.csv"])
def test_images_with_a_label_in_the_table_are_not_suggested(
    in_world: Path, cli: Cli, photos: Path, place: str, given: bool
) -> None:
    """By the table in or next to the folder, or by a named one; a row without a label is no label."""
    files = sorted(photos.rglob("*.jpg"))
    for i, file in enumerate(files):
        day = Path("all") / f"2024-05-0{i % 2 + 1}"
        day.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, day)
    named = files[::2] if "05-01" in place else files
    labeled = named[::3]
    rows = [f"{f.name},{f.parent.name if f in labeled else ''}" for f in named]
    Path(place).write_text("\n".join(["file,label", *rows]))
    answer = cli("suggest", "all", *([f"labeled={place}"] if given else []), "n=60", "out=to_label", *QUICK)
    assert answer.code == 0, answer.err
    used = given or "05-01" not in place
    line = f"{len(labeled)} images labeled in {place}; left out here: {len(labeled)}\n"
    assert line in answer.err if used else "left out here" not in answer.err
    expected = {f.name for f in files} - {f.name for f in labeled if used}
    assert {Path(n).name for n in answer.out.splitlines()} == expected


def test_images_of_class_folders_are_not_suggested_next_to_unlabeled_ones(
    in_world: Path, cli: Cli, photos: Path
) -> None:
    for name in ("flower", "temple"):
        for i, file in enumerate(sorted((photos / name).iterdir())):
            folder = Path("all", name if i < 9 else "unlabeled")
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, folder)
    answer = cli("suggest", "all", "n=60", *QUICK)
    assert "18 images labeled in the class folders of all; left out here: 18" in answer.err
    assert {str(Path(n).parent) for n in answer.out.splitlines()} == {"all/unlabeled"}
    assert len(answer.out.splitlines()) == 60 - 18
    assert (summary(runs("suggest")[-1])["labels_from"], summary(runs("suggest")[-1])["left_out"]) == (
        "the class folders of all", 18,
    )  # fmt: skip
    assert len(cli("suggest", "all", "n=60", "labeled=null", *QUICK).out.splitlines()) == 60


@pytest.mark.parametrize("table", ["elsewhere/table.csv", "table.csv"])
def test_a_label_file_anywhere_is_matched_with_the_images(in_world: Path, cli: Cli, photos: Path, table: str) -> None:
    """Also if other folders next to it have images of the same names; copies and damaged images are left out, too."""
    for name in ("all", "other"):
        Path(name).mkdir()
        for file in photos.rglob("*.jpg"):
            shutil.copy(file, name)
    shutil.copy("all/flower 00.jpg", "all/again.jpg")
    Path("all/temple 00.jpg").write_bytes(b"damaged")
    Path(table).parent.mkdir(exist_ok=True)
    Path(table).write_text("file,label\nflower 00.jpg,flower\ntemple 00.jpg,temple")
    answer = cli("suggest", "all", f"labeled={table}", "n=99", *QUICK)
    assert answer.code == 0, answer.err
    assert f"2 images labeled in {table}; left out here: 2" in answer.err
    assert answer.err.count("Cannot read all/temple 00.jpg") == 1
    assert {Path(n).name for n in answer.out.splitlines()} == {p.name for p in photos.rglob("*.jpg")} - {
        "flower 00.jpg", "temple 00.jpg",
    }  # fmt: skip
    Path(table).write_text("file,label\nnone.jpg,flower\nno.jpg,temple")
    answer = cli("suggest", "all", f"labeled={table}", *QUICK)
    assert (answer.code, len(runs("suggest"))) == (1, 2)
    Path(table).write_text("file,a,b\nflower 00.jpg,x,z\nflower 01.jpg,y,v")
    answer = cli("suggest", "all", f"labeled={table}", *QUICK)
    assert "Name the column of labels `label`" in answer.err
    Path("all/mine.csv").write_text("file,label\nflower 00.jpg,flower\nflower 01.jpg,flower")
    Path(table).unlink()
    answer = cli("suggest", "all", *QUICK)
    assert "not read as labels: all/mine.csv: column label has a single value" in answer.err


def test_a_labeled_folder_is_suggested_as_a_whole(in_world: Path, cli: Cli, photos: Path) -> None:
    answer = cli("suggest", str(photos), "n=99", *QUICK)
    assert (answer.code, len(answer.out.splitlines())) == (0, 60)
    shutil.copytree(photos, "flat")
    Path("flat/labels.csv").write_text(
        "\n".join(["file,label", *(f"{p.name},{p.parent.name}" for p in photos.rglob("*.jpg"))])
    )
    assert len(cli("suggest", "flat", "n=99", *QUICK).out.splitlines()) == 60


def test_labels_that_are_unclear_are_not_used(in_world: Path, cli: Cli, photos: Path) -> None:
    Path("all").mkdir()
    for file in photos.rglob("*.jpg"):
        shutil.copy(file, "all")
    for name in ("a.csv", "b.csv"):
        Path("all", name).write_text("file,label\nflower 10.jpg,flower\ntemple 10.jpg,temple")
    answer = cli("suggest", "all", "n=60", *QUICK)
    assert answer.code == 0, answer.err
    assert (
        "No labels are used to leave images out: all/a.csv, all/b.csv are label files: choose one with labeled=..."
        in answer.err
    )
    assert len(answer.out.splitlines()) == 60
    answer = cli("suggest", "all", "n=60", "labeled=all/b.csv", *QUICK)
    assert len(answer.out.splitlines()) == 58


def test_odd_files_among_the_images_and_the_labeled_ones(in_world: Path, cli: Cli, photos: Path) -> None:
    labeled = Path("labeled/flower")
    labeled.mkdir(parents=True)
    first = sorted(photos.rglob("*.jpg"))[0]
    shutil.copy(first, labeled / ("x" * 240 + ".jpg"))
    (labeled / "gone.jpg").symlink_to("/nowhere")
    os.mkfifo(labeled / "pipe.jpg")
    long = Path("more") / ("y" * 250 + ".jpg")
    long.parent.mkdir()
    shutil.copy(first, long)
    answer = cli(
        "suggest", str(photos), str(photos / "flower"), "more", "labeled=labeled", "n=99", "out=to_label", *QUICK
    )
    assert answer.code == 0, answer.err
    names = answer.out.splitlines()
    assert len(names) == len(set(names)) == 59  # neither the labeled one nor its copy
    assert all(len(p.name) <= 255 for p in Path("to_label/to_sort").iterdir())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["out=outputs"], "already exists and is not empty"),
        (["classes=[a/b]"], "'a/b' is not a valid folder name"),
        (["labeled=nowhere"], "labeled=nowhere: no such folder or label file"),
        (["n=0"], "n: must be at least 1"),
        (["run=nowhere"], "is not a run of sslrun"),
    ],
)
def test_mistakes(in_world: Path, cli: Cli, photos: Path, changes: list[str], words: str) -> None:
    answer = cli("suggest", str(photos), *changes, *QUICK)
    assert answer.code == 1
    assert words in answer.err
    assert "Traceback" not in answer.err


def test_copies_are_recognized_by_their_bytes() -> None:
    for name, text in (("a", "one"), ("b", "two"), ("c", "three"), ("x", "two"), ("y", "six"), ("z", "two")):
        Path(name).write_text(text)
    assert _copies(["a", "b", "c"], ["x", "y", "z"]) == ([1], [1])
    assert _copies(["a", "b", "x"], ["z"]) == ([1, 2], [])
    assert _copies(["a", "b"], ["y", "x"]) == ([1], [0])
    assert _copies(["a"], []) == ([], [])


def test_copies_to_sort_are_numbered_in_order_with_leading_zeros() -> None:
    files = [f"{i:03d}.jpg" for i in range(11)]
    for file in files:
        Path(file).write_text(file)
    folder = Path("out")
    folder.mkdir()
    copies = _lay_out(files, folder, ["a", "b"])
    assert [c.name for c in copies][::10] == ["01_000.jpg", "11_010.jpg"]
    assert [c.read_text() for c in copies] == files
    assert sorted(p.name for p in folder.iterdir()) == ["to_sort", "train"]
    assert sorted(p.name for p in (folder / "train").iterdir()) == ["a", "b"]
    assert _shortened("x" * 300 + ".jpg") == "x" * 196 + ".jpg"
