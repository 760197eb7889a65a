"""`sslrun data check | preview | fetch`, as they are typed."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sslrun.data.orientation import orientation
from sslrun.report.check import findings
from tests.conftest import QUICK, REPOSITORY, Answer, Cli, process
from tests.published import piece

SMALL = ("backbone.widths=[8,16]", "batch_size=32", *QUICK)


def check(cli: Cli, *arguments: str, root: Path | str = "set", size: int = 32) -> Answer:
    where = ("dataset=folder", f"dataset.root={root}", f"dataset.image_size={size}")
    return cli("data", "check", *where, *SMALL, *arguments)


def result(answer: Answer, level: str) -> str:
    return "\n".join(f["text"] for f in json.loads(answer.out)["findings"] if f["level"] == level)


@pytest.fixture
def messy(photos: Path) -> Path:
    """A folder with everything that goes wrong in folders."""
    for split in ("train", "test"):
        for name in ("flower", "temple"):
            Path("set", split, name).mkdir(parents=True)
    for i, file in enumerate(sorted(photos.glob("*/*.jpg"))):
        shutil.copy(file, Path("set", "test" if i % 5 == 0 else "train", file.parent.name))
    shutil.copy("set/test/flower/flower 00.jpg", "set/train/flower/again.jpg")  # in training and test
    with Image.open("set/test/temple/temple 05.jpg") as image:
        image.save("set/train/temple/recompressed.jpg", quality=70)
    shutil.copy("set/train/flower/flower 01.jpg", "set/train/temple/flower.jpg")  # in two classes
    shutil.copy("set/train/flower/flower 02.jpg", "set/train/flower/copy.jpg")
    Path("set/train/flower/broken.jpg").write_bytes(Path("set/train/flower/flower 01.jpg").read_bytes()[:300])
    Path("set/train/flower/photo.heic").write_bytes(b"x")
    return Path("set")


def test_check_finds_what_is_wrong_with_a_folder(messy: Path, cli: Cli) -> None:
    answer = check(cli, "format=json", "dataset.max_bad_fraction=0.1", "label_fraction=0.02")
    assert answer.code == 0, answer.err
    report = json.loads(answer.out)
    train = report["splits"]["train"]
    assert (train["images"], train["classes"]) == (52, {"flower": 26, "temple": 26})
    assert train["formats"] == {"JPEG": 52}
    assert [b["file"] for b in train["unreadable"]] == ["set/train/flower/broken.jpg"]
    assert train["width"] == {"min": 40, "median": 40, "max": 40}
    d = {k: sorted(sorted(os.path.basename(f) for f in g) for g in report["duplicates"][k])
         for k in ("exact", "near", "train_and_test", "classes_differ")}  # fmt: skip
    assert ["copy.jpg", "flower 02.jpg"] in d["exact"]
    assert d["train_and_test"] == [["again.jpg", "flower 00.jpg"], ["recompressed.jpg", "temple 05.jpg"]]
    assert d["near"] == [["recompressed.jpg", "temple 05.jpg"]]
    assert d["classes_differ"] == [["flower 01.jpg", "flower.jpg"]]
    warnings = result(answer, "warning")
    assert "1 of 53 pictures of train cannot be read: set/train/flower/broken.jpg (damaged" in warnings
    assert "in training too, exactly or nearly: 2; the first: set/t" in warnings
    assert "pictures that are in more than one class, exactly or nearly: 1;" in warnings
    assert "1 .heic" in warnings
    assert "label_fraction=0.02 is less than one picture of flower (23), temple (23)" in warnings
    assert json.loads(next(Path("outputs/check").glob("*/check.json")).read_text()) == report


def test_the_table_says_the_same_for_people(messy: Path, cli: Cli) -> None:
    answer = check(cli, "dataset.max_bad_fraction=0.1")
    assert answer.code == 0, answer.err
    row = next(line for line in answer.out.splitlines() if line.strip().startswith("train "))
    assert row.split() == ["train", "52", "2", "26", "52", "JPEG", "40x40", "0", "1"]
    assert "An epoch of simclr with smallcnn takes about" in answer.out
    assert "warning  test accuracy will flatter: pictures of test that are in training too" in answer.out


def test_what_would_stop_a_run_is_an_error_after_the_report(messy: Path, cli: Cli) -> None:
    answer = check(cli, "labels_per_class=25", "format=json")
    assert answer.code == 1
    errors = result(answer, "error")
    assert "more than dataset.max_bad_fraction=0.01" in errors
    assert "labels_per_class=25 is more than there are, validation apart: flower (23), temple (23)" in errors
    assert "sslrun: a run would stop" in answer.err
    assert "Traceback" not in answer.err


def test_case_45_classes_of_one_picture_and_only_one_class(photos: Path, cli: Cli) -> None:
    Path("set/train/rare").mkdir(parents=True)
    shutil.copytree(photos, "set/train", dirs_exist_ok=True)
    shutil.copy(photos / "flower/flower 00.jpg", "set/train/rare/one.jpg")
    shutil.copytree(photos, "set/test")
    answer = check(cli, "format=json")
    assert answer.code == 1
    assert "classes too small to carve validation from: rare" in result(answer, "error")
    answer = check(cli, "format=json", "dataset.val_fraction=0")
    assert answer.code == 0
    assert "has 30 pictures, rare has 1" in result(answer, "warning")
    answer = check(cli, "format=json", "dataset.classes=[flower]")
    assert "there is one class" in result(answer, "warning")


def test_a_folder_in_which_nothing_can_be_read(cli: Cli) -> None:
    for c in ("a", "b"):
        for i in range(3):
            Path("set", c).mkdir(parents=True, exist_ok=True)
            Path("set", c, f"{i}.jpg").write_text("text")
    answer = check(cli, "format=json")
    assert answer.code == 1
    assert json.loads(answer.out)["splits"]["train"]["images"] == 0
    assert "4 of 4 pictures of train cannot be read" in result(answer, "error")


def test_a_pile_without_labels(photos: Path, cli: Cli) -> None:
    answer = check(cli, "format=json", root=photos / "flower")
    assert answer.code == 0
    assert "there are no labels" in result(answer, "advice")
    assert json.loads(answer.out)["labels"] is None


def test_unlabelled_pictures_beside_are_looked_at_too(photos: Path, cli: Cli) -> None:
    shutil.copytree(photos / "temple", "pile")
    answer = check(cli, "format=json", "unlabeled=pile", root=photos)
    report = json.loads(answer.out)
    assert report["splits"]["unlabeled=pile"]["images"] == 30
    assert len(report["duplicates"]["exact"]) == 30
    assert "in training too, exactly or nearly: 6;" in result(answer, "warning")


def test_small_wide_and_grey_pictures(cli: Cli) -> None:
    for c in ("a", "b"):
        Path("set", c).mkdir(parents=True)
        for i in range(30):
            piece(40, 2 * i + (c == "b")).convert("L").crop((0, 0, 40, 16)).save(f"set/{c}/{i}.png")
    answer = check(cli, "format=json")
    advice = result(answer, "advice")
    assert "pictures smaller than dataset.image_size=32 are blown up, which adds no detail: 48 of 48 of train" in advice
    assert "dataset.resize=crop cuts away 60% of a picture of train" in advice
    assert "the pictures are grey" in advice
    assert "resize=crop" not in result(check(cli, "format=json", "dataset.resize=pad"), "advice")


def report(**pixels: Any) -> dict[str, Any]:
    return {
        "options": {"image_size": 32, "resize": "crop", "max_bad_fraction": 0.01, "horizontal_flip": True},
        "splits": {"train": {"images": 100, "classes": {"a": 50, "b": 50}, "unreadable": []}},
        "other_files": {},
        "duplicates": {
            **{k: [] for k in ("exact", "near", "train_and_test", "classes_differ")},
            "test_images_in_training": 0,
        },
        "labels": {"classes": 2, "too_few_for_validation": [], "too_few": {}, "labels_per_class": None},
        "pixels": {"gray": 0.0, "blank": 0.0, "orientation": None, **pixels},
    }


@pytest.mark.parametrize(
    ("rotation", "half", "words"),
    [
        (0.26, 0.2, "show no up"),
        (0.5, 0.48, "have an axis, but hardly a top"),
        (0.6, 0.15, "have an up"),
        (0.9, 0.1, "have an up"),
        (0.99, 0.0, "shows at once"),
    ],
)
def test_advice_on_rotation(rotation: float, half: float, words: str) -> None:
    actual = findings(report(orientation={"rotation": rotation, "errors_by_180": half, "flip": 0.5, "images": 500}))
    assert len(actual) == 1
    assert words in actual[0][1]


@pytest.mark.parametrize("n", [50, 100, 300])
def test_noise_is_not_said_to_have_an_up_however_few_pictures_there_are(n: int) -> None:
    for seed in range(12):
        noise = torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
        (result,) = findings(report(orientation=asdict(orientation(noise))))
        assert "show no up" in result[1]


def test_advice_on_mirroring_only_where_pictures_are_mirrored() -> None:
    messages = report(orientation={"rotation": 0.6, "errors_by_180": 0.1, "flip": 0.9, "images": 500})
    assert "horizontal_flip=false" in findings(messages)[-1][1]
    messages["options"]["horizontal_flip"] = False
    assert not any("horizontal_flip" in text for _, text in findings(messages))


def test_a_batch_that_does_not_fit_is_a_warning() -> None:
    big = report() | {"estimate": {"batch_size": 512, "training_bytes": 30e9, "memory_bytes": 24e9}}
    assert findings(big) == [
        ("warning", "a step on 512 pictures takes about 30.0 GB of the 24.0 GB of memory: "
         "a smaller train.batch_size takes less")
    ]  # fmt: skip


def test_nothing_to_say_about_good_data() -> None:
    assert findings(report()) == []


def test_the_estimate_of_memory_grows_with_the_batch_and_the_network(photos: Path, cli: Cli) -> None:
    sizes = []
    for more in (("batch_size=32",), ("batch_size=64",), ("batch_size=64", "backbone.widths=[16,32]")):
        answer = check(cli, "format=json", *more, root=photos)
        sizes.append(json.loads(answer.out)["estimate"]["training_bytes"])
    assert 1.6 < sizes[1] / sizes[0] < 2.1
    assert 1.3 < sizes[2] / sizes[1] < 2.5


def test_a_leak_that_was_saved_in_another_format_is_found(cli: Cli) -> None:
    for i in range(12):
        for split, suffix in (("train", "png"), *([("test", "bmp")] if i < 4 else [])):
            Path("set", split, "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
            piece(40, i).save(Path("set", split, "ab"[i % 2], f"{i}.{suffix}"))
    piece(40, 77).save("set/test/a/other.png")
    answer = check(cli, "format=json")
    assert json.loads(answer.out)["duplicates"]["test_images_in_training"] == 4
    assert "in training too, exactly or nearly: 4;" in result(answer, "warning")


def test_copies_of_one_picture_in_test_are_counted_each(photos: Path, cli: Cli) -> None:
    shutil.copytree(photos, "set/train")
    for i in range(7):
        Path("set/test/flower").mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / "flower/flower 00.jpg", f"set/test/flower/{i}.jpg")
    assert "exactly or nearly: 7; the first" in result(check(cli, "format=json"), "warning")


def test_amounts_of_labels_that_finetune_refuses_are_refused(photos: Path, cli: Cli) -> None:
    assert "label_fraction must be at most 1" in check(cli, "label_fraction=10", root=photos).err
    assert "not both" in check(cli, "label_fraction=0.1", "labels_per_class=1", root=photos).err


def test_a_name_that_is_no_text_is_printed(photos: Path) -> None:
    for c in ("a", "b"):
        Path("set", c).mkdir(parents=True)
        for i in range(3):
            shutil.copy(photos / f"flower/flower 0{i}.jpg", f"set/{c}/{i}.jpg")
    shutil.copy("set/a/1.jpg", os.fsdecode(b"set/a/\xff\xfe.jpg"))
    where = ("dataset=folder", "dataset.root=set", "dataset.val_fraction=0", *SMALL)
    for form in ("json", "table"):
        answer = process("data", "check", *where, f"format={form}", PYTHONIOENCODING="utf-8:strict")
        assert answer.code == 0, answer.err
        assert "\\udcff" in answer.out


def test_case_52_check_takes_no_advice_from_test(photos: Path, cli: Cli) -> None:
    shutil.copytree(photos, "set/train")
    shutil.copytree(photos, "set/test")
    before = json.loads(check(cli, "format=json").out)
    rng = np.random.default_rng(0)
    for file in Path("set/test").glob("*/*.jpg"):
        Image.fromarray(rng.integers(0, 255, (40, 40), dtype=np.uint8)).save(file)
    after = json.loads(check(cli, "format=json").out)
    assert before["pixels"] == after["pixels"]
    assert before["labels"] == after["labels"]
    assert before["estimate"]["decoded_bytes"] == after["estimate"]["decoded_bytes"]


# --------------------------------------------------------------------------------------------------------- preview


@pytest.mark.parametrize(("pretext", "columns"), [("rotation", 6), ("simclr", 4), ("jigsaw", 3)])
def test_preview_draws_the_file_the_picture_and_its_views(pretext: str, columns: int, photos: Path, cli: Cli) -> None:
    where = ("dataset=folder", f"dataset.root={photos}", "dataset.image_size=32")
    answer = cli("data", "preview", *where, f"pretext={pretext}", "images=4")
    assert answer.code == 0, answer.err
    with Image.open(answer.out.strip()) as image:
        width, height = image.size
        assert width / height == pytest.approx((1.2 * columns) / (1.2 * 4 + 0.3), rel=0.02)
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 1000


def test_preview_of_arrays_of_one_seed_is_the_same_and_of_another_is_not(cli: Cli) -> None:
    drawn = [Path(cli("data", "preview", f"seed={s}").out.strip()).read_bytes() for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_preview_skips_what_it_cannot_read_and_reads_no_test(photos: Path, cli: Cli) -> None:
    Path("set/train/a").mkdir(parents=True)
    Path("set/train/a/bad.jpg").write_text("x")
    shutil.copy(photos / "flower/flower 00.jpg", "set/train/a/good.jpg")
    Path("set/test/a").mkdir(parents=True)
    Path("set/test/a/worse.jpg").write_text("x")
    where = ("dataset=folder", "dataset.root=set")
    answer = cli("data", "preview", *where)
    assert answer.code == 0
    assert "Skipped set/train/a/bad.jpg" in answer.err
    assert "worse" not in answer.err
    Path("set/train/a/good.jpg").unlink()
    answer = cli("data", "preview", *where)
    assert answer.code == 1
    assert answer.lines()[-1] == "sslrun: no picture of folder set can be read"


# ------------------------------------------------------------------------------------------------- fetch, and the rest


def test_fetch_of_what_is_there_says_so(photos: Path, cli: Cli) -> None:
    answer = cli("data", "fetch")
    assert answer.code == 0
    assert "digits: 1438 training pictures, 10 classes" in answer.err
    answer = cli("data", "fetch", "dataset=folder", "dataset.root=nowhere")
    assert answer.code == 1
    assert "nowhere: no such folder" in answer.err


@pytest.mark.parametrize("command", ["fetch", "check", "preview"])
def test_help_of_the_data_commands(command: str, cli: Cli) -> None:
    answer = cli("data", command, "--help")
    assert answer.code == 0
    assert f"Usage: sslrun data {command} [flags] [key=value ...]" in answer.out
    assert "dataset=digits" in answer.out
    assert "from_checkpoint" not in answer.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("check", "format=xml"), "format: must be one of table or json, found xml"),
        (("check", "dataset=flower"), "dataset=flower: no such dataset; did you mean flowers"),
        (("check", "dataset=from_checkpoint"), "check starts from no checkpoint"),
        (("check", "batch_size=1"), "batch_size: must be at least 4, found 1"),
        (("preview", "images=0"), "images: must be at least 1, found 0"),
        (("preview", "label_fraction=1"), "label_fraction: no such key"),
        (("fetch", "pretext=simclr"), "fetch has no pretext"),
        (("fetch", "cifar10"), "unexpected: cifar10; did you mean dataset=cifar10?"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], words: str, cli: Cli) -> None:
    answer = cli("data", *arguments)
    assert answer.code == 1
    assert words in answer.err
    assert len(answer.lines()) == 1


def test_a_sweep_of_previews(cli: Cli) -> None:
    answer = cli("data", "preview", "-m", "pretext=rotation,simclr", "images=2")
    assert answer.code == 0, answer.err
    assert len(answer.out.split()) == 2
    assert "failed" not in answer.err  # runs without a score are no failures
    assert all(Path(p).is_file() for p in answer.out.split())


def test_every_group_that_the_readme_lists_is_there() -> None:
    text = (REPOSITORY / "README.md").read_text()
    for p in (REPOSITORY / "conf" / "dataset").glob("[!_]*.yaml"):
        assert p.stem == "from_checkpoint" or f"`{p.stem}`" in text


def test_a_reader_that_goes_away_is_no_failure(photos: Path) -> None:
    where = ("data", "check", "dataset=folder", f"dataset.root={photos}", *SMALL, "format=json")
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "sslrun", *where], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 141
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
