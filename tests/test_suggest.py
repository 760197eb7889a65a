"""`sslrun suggest`: what is chosen, and the folders that it leaves to be filled."""

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sslrun.inference.suggestion import typical_and_diverse
from tests.conftest import QUICK, Cli
from tests.test_cli import runs


def heaps(sizes: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return points around far-away centres, which heap each is of; the first of a heap lies at its centre."""
    rng = np.random.default_rng(seed)
    heap = np.repeat(np.arange(len(sizes)), sizes)
    centres = 10 * np.eye(len(sizes), 8)
    noise = rng.normal(size=(len(heap), 8))
    noise[np.unique(heap, return_index=True)[1]] = 0
    return centres[heap] + 0.5 * noise, heap


def test_one_of_each_heap_the_largest_first_from_its_middle() -> None:
    x, heap = heaps([30, 60, 40, 50])
    chosen = typical_and_diverse(x, 4, seed=0)
    assert heap[chosen].tolist() == [1, 3, 2, 0]
    for i in chosen:
        others = np.flatnonzero(heap == heap[i])
        spread = np.linalg.norm(x[others] - x[others].mean(0), axis=1)
        assert spread[others == i] < np.median(spread)


def test_heaps_with_labels_come_last_and_no_picture_twice() -> None:
    x, heap = heaps([30, 60, 40, 50])
    labeled = np.flatnonzero(np.isin(heap, (1, 3)))[::40]
    first = typical_and_diverse(x, 2, seed=0, labeled=labeled)
    assert sorted(heap[first]) == [0, 2]
    every = typical_and_diverse(x, 1000, seed=0, labeled=labeled)
    assert sorted([*every, *labeled]) == list(range(len(x)))
    assert len(set(typical_and_diverse(x, 100, seed=0))) == 100


def test_equal_pictures_and_few_of_them_are_no_trouble() -> None:
    assert len(set(typical_and_diverse(np.ones((30, 4)), 10, seed=0))) == 10
    assert typical_and_diverse(np.ones((3, 4)), 10, seed=0).tolist() == [0, 1, 2]
    assert typical_and_diverse(np.zeros((5, 4)), 1, seed=0).shape == (1,)


def test_from_suggestion_to_classifier(in_world: Path, cli: Cli, photos: Path) -> None:
    """As a user does it: choose, sort into folders, finetune, choose more."""
    unlabeled_folder = Path("pile")
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
    for copy in copies:
        copy.rename(Path("to_label/train") / copy.name.split("_")[1].split()[0] / copy.name)
    messages = answer.err[answer.err.index("sslrun finetune") :].split()
    assert messages[2:5] == [f"init={run}", "dataset=folder", "dataset.root=to_label"]
    done = cli(*messages[1:5], "mode=probe", *QUICK)
    assert done.code == 0, done.err
    assert "labels of folder" in done.err
    answer = cli("suggest", str(unlabeled_folder), "n=100", "labeled=to_label/train", "out=more", f"run={run}", *QUICK)
    assert answer.code == 0, answer.err
    assert not {Path(n).name for n in answer.out.splitlines()} & {Path(n).name for n in names}
    assert len(answer.out.splitlines()) == 60 - 24


def test_odd_files_among_the_pictures_and_the_labelled(in_world: Path, cli: Cli, photos: Path) -> None:
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


def test_more_choices_than_groups_take_turns() -> None:
    from sslrun.inference import suggestion

    x, _ = heaps([300] * 4)
    chosen = typical_and_diverse(x, 700, seed=0)
    assert len(set(chosen)) == 700
    assert len(set(chosen[: suggestion.GROUPS])) == suggestion.GROUPS


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["out=outputs"], "is there already and not empty"),
        (["classes=[a/b]"], "'a/b' is no name for a folder"),
        (["labeled=nowhere"], "labeled=nowhere: no folder with pictures"),
        (["n=0"], "n: must be at least 1"),
        (["run=nowhere"], "no run of sslrun there"),
    ],
)
def test_mistakes(in_world: Path, cli: Cli, photos: Path, changes: list[str], words: str) -> None:
    answer = cli("suggest", str(photos), *changes, *QUICK)
    assert answer.code == 1
    assert words in answer.err
    assert "Traceback" not in answer.err
