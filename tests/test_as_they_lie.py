"""Images and labels as people have them, from check to predict."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import QUICK, SMALL, Cli, runs, slow, summary


def tile(color: int, i: int) -> Image.Image:
    """Return a noisy 32 px image with a square in one of two colors."""
    pixels = np.random.default_rng([color, i]).integers(0, 60, (32, 32, 3)).astype(np.uint8)
    pixels[8:24, 8:24, 2 * color] = 220
    return Image.fromarray(pixels)


def flat_with_a_table() -> list[str]:
    """A flat folder, and a table as a German Excel writes it, in which some images have no label."""
    lines = []
    for i in range(60):
        tile(i % 2, i).save(f"set/IMG_{i:04d}.jpg")
        lines.append(f"{['hell', 'dünkel'][i % 2] if i < 50 else ''};IMG_{i:04d}")
    Path("set/arten.csv").write_text("\n".join(["Art;Bild", *lines]), encoding="cp1252")
    return [
        "set/IMG_0058.jpg",
        "set/IMG_0059.jpg",
        "dünkel",
        "50 images, 2 classes; labels from set/arten.csv",
        "10 unlabeled",
    ]


def classes_of_days() -> list[str]:
    """Classes, in them days, in them images; a NAS's thumbnails."""
    for i in range(60):
        for name, size in ((f"{i}.png", 32), (f"@eaDir/{i}.png/THUMB_M.jpg", 16)):
            path = Path(f"set/{('a', 'b')[i % 2]}/2024-05-{1 + i % 3:02d}", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            tile(i % 2, i).resize((size, size)).save(path)
    return ["set/a/2024-05-01/0.png", "set/b/2024-05-02/1.png", "b", "60 images, 2 classes", "6 system folders: @eaDir"]


def microscopy() -> list[str]:
    """12 bits in 16-bit TIFF, with an offset; the classes differ in the number of bright spots."""
    for i in range(60):
        rng = np.random.default_rng(i)
        values = 100 + rng.normal(0, 10, (32, 32))
        for _ in range(1 + 8 * (i % 2)):
            y, x = rng.integers(0, 28, 2)
            values[y : y + 4, x : x + 4] += 2500
        path = Path("set", ("one", "many")[i % 2], f"{i}.tif")
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(values.clip(0, 4095).astype(np.uint16)).save(path)
    return ["set/one/0.tif", "set/many/1.tif", "many", "60 images, 2 classes", "range 0 to 4095 (dataset.range)"]


@pytest.mark.parametrize("lay_out", [flat_with_a_table, *slow([classes_of_days, microscopy])])
def test_from_check_to_predict(lay_out: Callable[[], list[str]], cli: Cli) -> None:
    Path("set").mkdir()
    first, second, expected, *words = lay_out()
    data = ("dataset=folder", "dataset.root=set", "dataset.image_size=32")
    before = sorted(Path("set").rglob("*"))
    checked = cli("data", "check", *data, *SMALL)
    assert checked.code == 0, checked.err
    assert all(w in checked.err for w in words), checked.err
    steps = ("train.steps=2", "train.batch_size=16", "backbone.widths=[16,32]", *QUICK)
    assert cli("pretrain", *data, "pretext=rotation", *steps).code == 0
    assert cli("finetune", "mode=probe", *QUICK).code == 0
    evaluated = cli("evaluate", "stages=false", *QUICK)
    assert evaluated.code == 0, evaluated.err
    (run,) = runs("evaluate")
    assert summary(run)["images"] in (10, 12)
    assert summary(run)["test/accuracy"] > 0.8
    predicted = cli("predict", first, second, "format=csv", "figures=0", *QUICK)
    assert predicted.code == 0, predicted.err
    rows = list(csv.DictReader(io.StringIO(predicted.out)))
    assert [r["image"] for r in rows] == [first, second]
    assert [r["class_1"] == expected for r in rows] == [False, True]
    assert sorted(Path("set").rglob("*")) == before
