"""`sslrun data check`."""

import csv
import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sslrun.cli.places import quoted_paths
from sslrun.config.compose import compose_config
from sslrun.config.nodes import plain
from sslrun.data.dataset import load_test, load_train
from sslrun.data.images import Images
from sslrun.data.labels import LabelBudget, folds
from sslrun.data.sources.source import Listing
from sslrun.stages import check as stage
from tests.helpers import CPU, SMALL, Answer, Cli, ended, folder_node, frames, run_here, source_node, spawn
from tests.published import piece


def check(cli: Cli, *arguments: str, root: Path | str = "set", size: int = 32) -> Answer:
    where = ("dataset=folder", f"dataset.root={root}", f"dataset.image_size={size}")
    return cli("data", "check", *where, *SMALL, *arguments)


def result(answer: Answer, level: str) -> str:
    return "\n".join(f["text"] for f in json.loads(answer.out)["findings"] if f["level"] == level)


@pytest.fixture
def messy(photos: Path) -> Path:
    """A folder with all the usual problems."""
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
    Path("set/train/flower/photo.dng").write_bytes(b"x")
    return Path("set")


def test_check_finds_what_is_wrong_with_a_folder(messy: Path, cli: Cli) -> None:
    answer = check(cli, "format=json", "dataset.max_bad_fraction=0.1", "labels=2")
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
    assert "1 of 53 images in train cannot be read: set/train/flower/broken.jpg (damaged" in warnings
    assert "exact or near duplicate in training: 2; first group: set/t" in warnings
    assert "images with an exact or near duplicate in another class: 1;" in warnings
    assert "1 .dng (convert them to JPEG or PNG)" in warnings
    assert "classes with one label (labels=2): flower, temple; cross-validation cannot" in result(answer, "advice")
    assert json.loads(next(Path("outputs/check").glob("*/check.json")).read_text()) == report


def test_the_table_has_the_same_findings(messy: Path, cli: Cli) -> None:
    answer = check(cli, "dataset.max_bad_fraction=0.1")
    assert answer.code == 0, answer.err
    row = next(line for line in answer.out.splitlines() if line.strip().startswith("train "))
    assert row.split() == ["train", "52", "2", "26", "52", "JPEG", "40x40", "0", "1"]
    assert "An epoch of simclr with smallcnn takes about" in answer.out
    assert (
        "warning  test accuracy will be too high: test images with an exact or near duplicate in training" in answer.out
    )


def test_errors_are_raised_after_the_report(messy: Path, cli: Cli) -> None:
    answer = check(cli, "labels_per_class=27", "format=json")
    assert answer.code == 1
    assert "more than dataset.max_bad_fraction=0.01" in result(answer, "error")
    few = "labels_per_class=27 is more than these classes have: flower (26), temple (26)"
    assert f"{few}; all of their labels are used" in result(answer, "warning")
    assert "sslrun: training would fail" in answer.err
    assert "Traceback" not in answer.err


def test_case_45_classes_of_one_image_and_only_one_class(photos: Path, cli: Cli) -> None:
    Path("set/train/rare").mkdir(parents=True)
    shutil.copytree(photos, "set/train", dirs_exist_ok=True)
    shutil.copy(photos / "flower/flower 00.jpg", "set/train/rare/one.jpg")
    shutil.copytree(photos, "set/test")
    answer = check(cli, "format=json")
    assert answer.code == 0
    assert "classes with one label (label_fraction=1): rare; cross-validation" in result(answer, "advice")
    assert "has 30 images, rare has 1" in result(answer, "warning")
    answer = check(cli, "format=json", "dataset.classes=[flower]")
    assert "there is only one class" in result(answer, "warning")


def test_a_folder_without_readable_images(cli: Cli) -> None:
    for c in ("a", "b"):
        for i in range(3):
            Path("set", c).mkdir(parents=True, exist_ok=True)
            Path("set", c, f"{i}.jpg").write_text("text")
    answer = check(cli, "format=json")
    assert answer.code == 1
    assert json.loads(answer.out)["splits"]["train"]["images"] == 0
    assert "4 of 4 images in train cannot be read" in result(answer, "error")


def test_an_unlabeled_folder(photos: Path, cli: Cli) -> None:
    answer = check(cli, "format=json", root=photos / "flower")
    assert answer.code == 0
    assert "there are no labels" in result(answer, "advice")
    assert json.loads(answer.out)["labels"] is None


def test_additional_unlabeled_images_are_checked(photos: Path, cli: Cli) -> None:
    shutil.copytree(photos / "temple", "unlabeled")
    answer = check(cli, "format=json", "unlabeled=unlabeled", root=photos)
    report = json.loads(answer.out)
    assert report["splits"]["unlabeled=unlabeled"]["images"] == 30
    assert len(report["duplicates"]["exact"]) == 30
    assert "exact or near duplicate in training: 6;" in result(answer, "warning")


def test_small_wide_and_gray_images(cli: Cli) -> None:
    for c in ("a", "b"):
        Path("set", c).mkdir(parents=True)
        for i in range(30):
            piece(40, 2 * i + (c == "b")).convert("L").crop((0, 0, 40, 16)).save(f"set/{c}/{i}.png")
    answer = check(cli, "format=json")
    advice = result(answer, "advice")
    assert "images smaller than dataset.image_size=32 are upsampled, which adds no detail: 48 of 48 in train" in advice
    assert "dataset.resize=crop removes 60.0 % of an image in train" in advice
    assert "the images are gray" in advice
    assert "resize=crop" not in result(check(cli, "format=json", "dataset.resize=pad"), "advice")


def test_the_estimate_of_memory_grows_with_the_batch_and_the_network(photos: Path, cli: Cli) -> None:
    sizes = []
    for more in (("batch_size=32",), ("batch_size=64",), ("batch_size=64", "backbone.widths=[16,32]")):
        answer = check(cli, "format=json", *more, root=photos)
        sizes.append(json.loads(answer.out)["estimate"]["training_bytes"])
    assert 1.6 < sizes[1] / sizes[0] < 2.1
    assert 1.3 < sizes[2] / sizes[1] < 2.5


def test_a_leaked_image_in_another_format_is_found(cli: Cli) -> None:
    for i in range(12):
        for split, suffix in (("train", "png"), *([("test", "bmp")] if i < 4 else [])):
            Path("set", split, "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
            piece(40, i).save(Path("set", split, "ab"[i % 2], f"{i}.{suffix}"))
    piece(40, 77).save("set/test/a/other.png")
    answer = check(cli, "format=json")
    assert json.loads(answer.out)["duplicates"]["test_images_in_training"] == 4
    assert "exact or near duplicate in training: 4;" in result(answer, "warning")


def test_each_copy_of_an_image_in_test_is_counted(photos: Path, cli: Cli) -> None:
    shutil.copytree(photos, "set/train")
    for i in range(7):
        Path("set/test/flower").mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / "flower/flower 00.jpg", f"set/test/flower/{i}.jpg")
    assert "near duplicate in training: 7; first group" in result(check(cli, "format=json"), "warning")


def test_label_budgets_that_finetune_refuses_are_refused(photos: Path, cli: Cli) -> None:
    assert "label_fraction must be at most 1" in check(cli, "label_fraction=10", root=photos).err
    typed = check(cli, "label_fraction=0.1", "labels_per_class=1", root=photos).err
    assert "set only one of labels_per_class, label_fraction" in typed
    few = check(cli, "labels=1", "format=json", root=photos)
    assert few.code == 1
    assert "labels=1 is fewer than the 2 classes; every class needs a label" in result(few, "error")
    assert "labels=49: there are only 48 labels for training" in check(cli, "labels=49", root=photos).err


def test_a_file_name_that_is_not_utf8_is_printed(photos: Path) -> None:
    for c in ("a", "b"):
        Path("set", c).mkdir(parents=True)
        for i in range(3):
            shutil.copy(photos / f"flower/flower 0{i}.jpg", f"set/{c}/{i}.jpg")
    shutil.copy("set/a/1.jpg", os.fsdecode(b"set/a/\xff\xfe.jpg"))
    where = ("dataset=folder", "dataset.root=set", "dataset.val_fraction=0", *SMALL)
    for form in ("json", "table"):
        process = spawn(strictly, "data", "check", *where, f"format={form}", out=form, err="errors")
        assert ended(process) == 0, Path("errors").read_text()
        assert "\\udcff" in Path(form).read_text()


def strictly(*arguments: str) -> int:
    """Run a command with a standard output that accepts only valid text."""
    sys.stdout.reconfigure(encoding="utf-8", errors="strict")  # type: ignore[union-attr]
    return run_here(*arguments)


def test_case_52_check_gives_no_advice_from_test_images(photos: Path, cli: Cli) -> None:
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


def split_of(sizes: list[tuple[int, int]], labels: list[int] | None = None, **bad: str) -> Any:
    """Return a checked split of files of these sizes, some unreadable by position, with classes a and b."""
    heads = [
        SimpleNamespace(width=w, height=h, format="PNG" if w > 50 else "JPEG", mode="RGB", kind="16 bits" * (w > 50))
        for w, h in sizes
    ]
    unreadable = {int(k[1:]): reason for k, reason in bad.items()}
    items = [f"{i}.jpg" for i in range(len(sizes))]
    listing = SimpleNamespace(items=items, names=items, class_names=("a", "b"), groups=None)
    good = np.array([i for i in range(len(sizes)) if i not in unreadable])
    decoded = SimpleNamespace(bad=unreadable, outside={})
    return SimpleNamespace(listing=listing, headers=heads, good=good, decoded=decoded,
                           labels=None if labels is None else np.array(labels)[good])  # fmt: skip


def test_sizes_and_formats_of_a_split() -> None:
    split = split_of([(40, 20), (20, 40), (100, 100), (30, 30), (10, 10)], [0, 1, 1, 1, 0], i4="damaged")
    split.headers[4].format = None
    options: Any = SimpleNamespace(image_size=30, resize="crop")
    result = stage._split(split, options)
    assert (result["images"], result["classes"]) == (4, {"a": 1, "b": 3})
    assert (result["formats"], result["modes"]) == ({"JPEG": 3, "PNG": 1}, {"RGB": 4})
    assert (result["depths"], result["outside_range"]) == ({"8 bits": 3, "16 bits": 1}, {"images": 0, "values": 0})
    split.decoded.outside = {2: 0.25}
    assert stage._split(split, options)["outside_range"] == {"images": 1, "values": 0.25}  # of the one of 16 bits
    assert result["unreadable"] == [{"file": "4.jpg", "reason": "damaged"}]
    assert result["width"] == {"min": 20, "median": 30, "max": 100}
    assert result["height"] == {"min": 20, "median": 30, "max": 100}
    assert (result["smaller_than_image_size"], result["cut_away_by_crop"]) == (2, 0.25)
    options.resize = "pad"
    assert stage._split(split, options)["smaller_than_image_size"] == 0
    options.image_size = 41
    assert stage._split(split, options)["smaller_than_image_size"] == 3
    assert stage._split(split_of([(40, 20)]), options)["classes"] is None


@pytest.mark.parametrize(("channels", "mode"), [(3, "RGB"), (1, "L")])
def test_arrays_have_a_size_and_no_paths(channels: int, mode: str) -> None:
    listing = Listing(
        np.zeros((5, 20, 30, channels), np.uint8), [f"n{i}" for i in range(5)], np.array([0, 1, 1, 0, 1]), ("a", "b")
    )
    images = Images([torch.zeros(4, 8, 8, 3, dtype=torch.uint8)], np.arange(64, dtype=np.uint8).reshape(4, 16))
    decoded: Any = SimpleNamespace(images=lambda: images, good=lambda: np.array([0, 1, 3, 4]), bad={2: "x"}, outside={})
    split = stage.CheckedSplit("train", listing, decoded)
    result = stage._split(split, SimpleNamespace(image_size=8, resize="crop"))  # type: ignore[arg-type]
    assert (result["formats"], result["modes"]) == ({"array": 5}, {mode: 5})
    assert (result["depths"], result["outside_range"]["images"]) == ({"8 bits": 5}, 0)
    assert (result["width"]["max"], result["height"]["max"]) == (30, 20)
    assert (split.path(2), split.class_of(2), split.class_of(3)) == ("train: n3", "a", "b")
    assert split.digests() == [images.digests[i].tobytes() for i in range(4)]


def test_what_a_label_budget_means_for_the_classes() -> None:
    split = split_of([(8, 8)] * 15, [0] * 3 + [1] * 12)
    whole: dict[str, Any] = {"classes": 2, "too_few": {}, "mistake": None, "single": []}
    per_class = {"budget": "labels_per_class=4", "labels": 7, "too_few": {"a": 3}}
    assert stage._labels(split, LabelBudget(per_class=4)) == whole | per_class
    assert stage._labels(split, LabelBudget(4)) == whole | {"budget": "labels=4", "labels": 4, "single": ["a"]}
    assert stage._labels(split, LabelBudget()) == whole | {"budget": "label_fraction=1", "labels": 15}
    refused = stage._labels(split, LabelBudget(16))
    assert refused is not None
    assert refused["mistake"] == "labels=16: there are only 15 labels for training; set fewer"
    assert (refused["labels"], refused["single"]) == (None, [])
    assert stage._labels(split_of([(8, 8)]), LabelBudget()) is None


def test_the_splits_of_a_data_set(photos: Path) -> None:
    shutil.copytree(photos, "set/train")
    shutil.copytree(photos / "flower", "set/unlabeled")
    shutil.copytree(photos, "set/test")
    splits = list(stage._splits(folder_node("set"), str(photos / "temple")))
    assert [(p.name, len(p.good)) for p in splits] == [
        ("train", 60), (f"unlabeled={photos / 'temple'}", 30), ("unlabeled", 30), ("test", 60),
    ]  # fmt: skip
    assert len(stage._joined(splits[:3])) == 120
    assert [p.labels is None for p in splits] == [False, True, True, False]
    assert stage._left_out(source_node("digits", None)) == {"other_files": {}, "unreadable_folders": []}
    shutil.copytree(photos / "flower", "set/val/flower")
    splits = list(stage._splits(folder_node("set"), None))
    assert [(p.name, len(p.good)) for p in splits] == [("train", 60), ("val", 30), ("unlabeled", 30), ("test", 60)]


def test_the_estimate_of_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    measured = SimpleNamespace(device=CPU, images_per_second=8.0, bytes=123, memory=456, preparation=7.0)

    def pretraining(*values: Any) -> SimpleNamespace:
        given.append(values)
        return measured

    monkeypatch.setattr(stage.estimate, "pretraining", pretraining)
    images = Images([torch.zeros(20, 4, 4, 3, dtype=torch.uint8)], np.zeros((20, 16), np.uint8))
    nodes = {n: {"_target_": f"x.{n}"} for n in ("pretext", "backbone", "optimizer", "device")}
    settings: Any = SimpleNamespace(**nodes, dataset={"image_size": 24}, batch_size=16)
    result = stage._estimate(images, settings)
    assert given == [(images, *nodes.values(), 24, 16)]
    assert (result["pretext"], result["backbone"], result["batch_size"]) == ("pretext", "backbone", 16)
    assert (result["images_per_second"], result["epoch_seconds"], result["preparation_seconds"]) == (8.0, 2.5, 7.0)
    assert (result["training_bytes"], result["memory_bytes"], result["decoded_bytes"]) == (123, 456, images.nbytes)
    assert (result["precision"], result["memory_format"]) == ("fp32", "channels_last")


def groups_of(answer: Answer) -> dict[str, Any]:
    assert answer.code == 0, answer.err
    result: dict[str, Any] = json.loads(answer.out)["groups"]
    return result


def sides(*overrides: str) -> dict[str, str]:
    """Return the side of each image, as training and evaluation load it, with the first of five folds."""
    where = ["dataset=folder", "dataset.root=set", "dataset.image_size=16", *overrides]
    node = plain(compose_config("finetune", where, None))["dataset"]
    every, given = load_train(node)
    assert every.labels is not None
    assert given is None
    fold = folds(every.labels.numpy(), 5, 0, every.groups)[0]
    parts = {"train": every.take(fold.train), "val": every.take(fold.val), "test": load_test(node)}
    return {name: side for side, part in parts.items() for name in part.names}


@pytest.mark.parametrize(
    ("name", "expression", "largest"),
    [
        ("{object}_{frame:02d}.png", r"([^/]+)_\d+\.", "bowl0"),
        ("{object}-{frame}.png", r"([^/]+)-\d+\.", "bowl0"),
        ("{object} ({frame}).png", r"([^/]+) \(\d+\)\.", "bowl0"),
        ("{object}_frame{frame}.png", r"([^/]+)_[^/_]*$", "bowl0"),
        ("{object}/{frame}.png", r"([^/]+)/[^/]*$", "bowl0"),
    ],
)
def test_groups_are_proposed_as_typed_in_a_shell(name: str, expression: str, largest: str, cli: Cli) -> None:
    frames("set", 6, 8, 0, name)
    answer = check(cli, "format=json", size=16)
    proposal = groups_of(answer)
    assert proposal == {
        "groups": 12,
        "largest": largest,
        "largest_images": 8,
        "overrides": f"dataset.groups='{expression}'",
        "change_sides": proposal["change_sides"],
    }
    (override,) = shlex.split(proposal["overrides"])
    before, after = sides(), sides(*quoted_paths([override], False))
    assert proposal["change_sides"] == sum(before[n] != after[n] for n in before) > 0
    assert (
        "near duplicates are on both sides of a split (train, test, folds of cross-validation): "
        f"{proposal['overrides']} makes 12 groups; the largest, bowl0, has 8 images, and "
        f"{proposal['change_sides']} images would change sides"
    ) in result(answer, "warning")
    given = check(cli, "format=json", override, size=16)
    assert groups_of(given) == {"groups": 12, "largest": largest, "largest_images": 8, "train_and_test": []}
    assert "dataset.groups: 12 groups; the largest, bowl0, has 8 images" in result(given, "advice")
    assert "duplicate in training" not in result(given, "warning")


def test_groups_of_consecutive_numbers_are_written_as_a_label_file(cli: Cli) -> None:
    frames("set", 6, 8, 0, "IMG_{number:04d}.png")
    proposal = groups_of(check(cli, "format=json", size=16))
    (file,) = Path("outputs/check").glob("*/groups.csv")
    assert proposal["overrides"] == f"dataset.labels={file} dataset.groups=group"
    with file.open(newline="") as lines:
        rows = {r["file"]: (r["label"], r["group"]) for r in csv.DictReader(lines)}
    assert rows == {
        f"{c}/IMG_{i:04d}.png": (c, f"{c}/IMG_{i // 8 * 8:04d}") for c in ("bowl", "cup") for i in range(48)
    }
    assert {p.relative_to("set").as_posix() for p in Path("set").rglob("*.*")} == {*rows}  # nothing new
    before, after = sides(), sides(*shlex.split(proposal["overrides"]))
    assert proposal["change_sides"] == sum(before[n] != after[n] for n in before) > 0
    given = check(cli, "format=json", *shlex.split(proposal["overrides"]), size=16)
    assert groups_of(given)["groups"] == 12
    assert "duplicate in training" not in result(given, "warning")


def test_a_given_test_split_is_in_the_label_file_and_only_validation_changes(cli: Cli) -> None:
    frames("set/train", 6, 8, 0, "IMG_{number:04d}.png")
    frames("set/test", 4, 8, 1, "IMG_{number:04d}.png")
    proposal = groups_of(check(cli, "format=json", size=16))
    (file,) = Path("outputs/check").glob("*/groups.csv")
    with file.open(newline="") as lines:
        rows = [*csv.DictReader(lines)]
    assert all(r["file"].startswith(f"{r['split']}/{r['label']}/") for r in rows)
    assert len(rows) == 160
    assert proposal["groups"] == 20
    assert 0 < proposal["change_sides"] <= 40


def test_no_groups_are_proposed_without_a_pattern_or_near_duplicates(cli: Cli, photos: Path) -> None:
    frames("set", 6, 8, 0)
    rng = np.random.default_rng(0)
    for i, file in enumerate(sorted(Path("set").rglob("*.png"), key=lambda _: rng.random())):
        file.rename(file.with_name(f"{'xyz'[i % 3]}{rng.integers(10**9)}q.png"))
    answer = check(cli, "format=json", size=16)
    assert json.loads(answer.out)["duplicates"]["near"]
    assert json.loads(answer.out)["groups"] is None
    assert json.loads(check(cli, "format=json", root=photos).out)["groups"] is None


def test_groups_in_both_training_and_test_are_named(cli: Cli) -> None:
    frames("set/train", 4, 3, 0)
    frames("set/test", 2, 3, 1)
    answer = check(cli, "format=json", r"dataset.groups=([^/]+)_\d+\.", size=16)
    assert groups_of(answer)["train_and_test"] == ["bowl0", "bowl1", "cup0", "cup1"]
    assert "groups in both training and test: 4, such as bowl0, bowl1, cup0, cup1" in result(answer, "warning")
    assert "train/ and test/ have 4 groups in common (dataset.groups): bowl0, bowl1, cup0" in answer.err


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("frame", "dataset.groups=frame: matches no image"),
        (".png", "dataset.groups=.png: puts all 24 images into one group"),
        ("^([^/]+)/", "dataset.groups puts the images of each class into one group; a test split needs at least two"),
        ("(", "dataset.groups=(: not a regular expression"),
    ],
)
def test_groups_that_cannot_be_split_are_one_line(pattern: str, words: str, cli: Cli) -> None:
    frames("set", 4, 3, 0)
    answer = check(cli, f"dataset.groups={pattern}", size=16)
    assert answer.code == 1
    assert [line for line in answer.lines() if line.startswith("sslrun:")] == [answer.lines()[-1]]
    assert words in answer.lines()[-1]


def test_classes_of_one_group_are_named_and_stay_in_training(cli: Cli) -> None:
    frames("set", 4, 3, 0)
    for file in Path("set/cup").iterdir():
        file.rename(file.with_name(f"only_{file.stem.replace('_', '')}.png"))
    answer = check(cli, "format=json", r"dataset.groups=(only|[^/]+)_", size=16)
    assert "set: no test images of cup: too few groups (dataset.groups)" in answer.err
    assert json.loads(answer.out)["splits"]["train"]["classes"] == {"bowl": 9, "cup": 12}
    assert json.loads(answer.out)["labels"]["labels"] == 21
