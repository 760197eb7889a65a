"""`sslrun data doubt`."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers import QUICK, Cli, runs, summary


def test_flipped_labels_come_first(cli: Cli, photos: Path) -> None:
    """With the names of the files, a sheet, and nothing changed."""
    shutil.copytree(photos, "photos")
    swapped = [sorted(Path("photos/flower").glob("*.jpg"))[3], sorted(Path("photos/temple").glob("*.jpg"))[5]]
    for file in swapped:
        other = {"flower": "temple", "temple": "flower"}[file.parent.name]
        file.rename(Path("photos", other, f"swapped {file.name}"))
    assert cli("finetune", "photos", "init=scratch", "mode=probe", "dataset.image_size=32", "dataset.test_fraction=0.1",
               *QUICK).code == 0  # fmt: skip
    before = {p: p.read_bytes() for p in Path("photos").rglob("*.jpg")}
    answer = cli("data", "doubt", "format=json", "n=10")
    assert answer.code == 0, answer.err
    rows = json.loads(answer.out)
    trained = {r["image"] for r in rows}
    assert all(Path(image).is_file() for image in trained)
    assert {Path(r["image"]).name for r in rows[:2]} <= {f"swapped {f.name}" for f in swapped}
    assert all(r["label"] == Path(r["image"]).parent.name != r["seems"] for r in rows)
    assert [r["confidence_label"] for r in rows] == sorted(r["confidence_label"] for r in rows)
    run = runs("doubt")[-1]
    with (run / "doubts.csv").open(newline="") as lines:
        assert [r["image"] for r in csv.DictReader(lines)] == [r["image"] for r in rows]
    assert Image.open(run / "figures/doubts.png").size[0] > 100
    assert {p: p.read_bytes() for p in Path("photos").rglob("*.jpg")} == before
    table = cli("data", "doubt", "n=1")
    assert "swapped" in table.out
    assert table.lines()[-1] == "Next: sslrun finetune photos"
    assert summary(runs("doubt")[-1])["doubts"] == len(rows)
    for file in Path("photos/flower").glob("*.jpg"):
        file.unlink()
        break
    answer = cli("data", "doubt")
    assert answer.code == 1
    assert answer.lines()[-1].endswith("was trained on other images or labels than those found now: train it again")


def test_labels_that_were_always_trained_on_are_not_checked_and_that_is_said(cli: Cli, photos: Path) -> None:
    extra = ("init=scratch", "mode=probe", "dataset.image_size=32", "labels=20", "validation=extra")
    assert cli("finetune", str(photos), *extra, *QUICK).code == 0
    answer = cli("data", "doubt")
    assert answer.code == 0, answer.err
    assert f"of {summary(runs('finetune')[-1])['labels_val']} labels seem wrong" in answer.err
    assert "20 labels not checked: no prediction was made without training on them." in answer.err


def test_a_run_without_predictions_is_one_line(cli: Cli, in_world: Path) -> None:
    run = runs("finetune")[-1]
    (run / "out_of_fold.npz").unlink(missing_ok=True)
    answer = cli("data", "doubt", f"run={run}")
    assert answer.code == 1
    assert "has no predictions on images that it was not trained on" in answer.lines()[-1]
    assert len(answer.lines()) == 1


def test_without_doubts_the_table_is_empty(cli: Cli, in_world: Path) -> None:
    run = runs("finetune")[-1]
    with np.load(run / "out_of_fold.npz") as kept:
        arrays = dict(kept)
    labels = arrays["labels"]
    arrays["probabilities"] = np.broadcast_to(np.eye(labels.max() + 1)[labels], arrays["probabilities"].shape)
    np.savez_compressed(run / "out_of_fold.npz", **arrays)
    answer = cli("data", "doubt", f"run={run}", "format=csv")
    assert answer.code == 0, answer.err
    assert answer.out == "rank,image,label,seems,confidence_label,confidence_seems\n"
    assert f"0 of {len(labels)} labels seem wrong" in answer.err
