"""Microscopy of 16 bits and floating point through the commands, and the same images with 8 bits."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import sslrun
from sslrun.data.decode import decode
from sslrun.report.sheets import contact_sheet, prediction_figures, whole_image
from sslrun.run import checkpoint
from tests.helpers import QUICK, SMALL, TINY, Cli, run_here, runs, summary
from tests.tiffs import write_tiff


def cells(i: int, c: int) -> np.ndarray:
    """Return an image of 12 bits: a disk or a stripe on noise."""
    rng = np.random.default_rng([i, c])
    y, x = np.mgrid[:32, :32]
    cy, cx = rng.integers(8, 24, 2)
    shape = (y - cy) ** 2 + (x - cx) ** 2 < 40 if c == 0 else abs(x - cx) < 3
    return (200 + 3500 * shape + rng.normal(0, 40, shape.shape)).clip(0, 4095).astype(np.uint16)


def as_8_bits(array: np.ndarray) -> np.ndarray:
    return np.ceil(array * (255 / 4095) - 0.5).clip(0).astype(np.uint8)


@pytest.fixture
def slides() -> Path:
    """Folders of the same images with 16 and with 8 bits, and 8-bit PNG to predict."""
    for c, name in enumerate(("disk", "stripe")):
        for folder in ("deep", "flat", "png"):
            Path(folder, name).mkdir(parents=True)
        for i in range(12):
            write_tiff(f"deep/{name}/{i:02}.tif", cells(i, c))
            write_tiff(f"flat/{name}/{i:02}.tif", as_8_bits(cells(i, c)))
            Image.fromarray(as_8_bits(cells(i, c))).save(f"png/{name}/{i:02}.png")
    return Path("deep")


def trained(root: str) -> Path:
    data = ("dataset=folder", f"dataset.root={root}", "dataset.image_size=16")
    assert run_here("pretrain", *data, *TINY, "train.batch_size=8", "train.steps=2") == 0
    assert run_here("finetune", f"init={runs('pretrain')[-1]}", "mode=finetune", "label_fraction=1", *QUICK,
                    "train.steps=4", "train.batch_size=8") == 0  # fmt: skip
    return runs("finetune")[-1]


def range_of(run: Path) -> Any:
    return summary(run)["config"]["dataset"]["range"]


@pytest.mark.slow
def test_a_folder_of_16_bits_gives_the_same_predictions_as_the_same_images_with_8(slides: Path, cli: Cli) -> None:
    deep, flat = trained("deep"), trained("flat")
    assert [range_of(r) for r in runs("pretrain")] == [range_of(deep), range_of(flat)] == [[0, 4095], None]
    with_16, with_8 = sslrun.load(deep, device="cpu"), sslrun.load(flat, device="cpu")
    assert with_16.gray_range == [0, 4095]
    for a, b in zip(*(m.network.encoder.state_dict().values() for m in (with_16, with_8)), strict=True):
        assert torch.equal(a, b)
    names = sorted(str(p.relative_to("deep").with_suffix("")) for p in slides.rglob("*.tif"))
    p = with_16.probabilities([f"deep/{n}.tif" for n in names])
    assert np.allclose(p, with_8.probabilities([f"png/{n}.png" for n in names]), atol=1e-6)
    assert np.allclose(p, with_16.probabilities([f"png/{n}.png" for n in names]), atol=1e-6)  # 8 bits as they are
    arrays = [Image.fromarray(cells(i, c)) for c in (0, 1) for i in range(12)]  # in memory
    assert np.allclose(p, with_16.probabilities(arrays), atol=1e-6)
    assert np.allclose(p, with_16.probabilities([Image.open(f"deep/{n}.tif") for n in names]), atol=1e-6)
    assert [cli("evaluate", f"run={run}", "stages=false", *QUICK).code for run in (deep, flat)] == [0, 0]
    assert len({summary(run)["test/accuracy"] for run in runs("evaluate")}) == 1
    assert range_of(runs("evaluate")[0]) == [0, 4095]
    answer = cli("predict", "deep", f"run={deep}", "format=json", *QUICK)
    rows = json.loads(answer.out)
    assert [r["confidence"] for r in rows] == pytest.approx(p.max(1).round(4).tolist(), abs=2e-4)
    assert cli("export", f"run={deep}", "format=safetensors", "out=net.safetensors").code == 0
    with safe_open("net.safetensors", "pt") as opened:
        assert json.loads(opened.metadata()["range"]) == [0, 4095]
    refused = cli("finetune", f"init={runs('pretrain')[0]}", "dataset.range=[0,65535]", *QUICK)
    assert refused.code == 1
    assert "dataset.range=[0, 65535] does not match" in refused.lines()[-1]


def test_values_outside_the_range_of_the_run_are_reported_with_predictions(in_world: Path, cli: Cli) -> None:
    run = with_range([0, 255])
    bright = np.zeros((32, 32), np.uint16)
    bright[:8] = 4000
    for name, array in (("a.png", bright), ("b.png", np.zeros_like(bright)), ("c.png", bright)):
        Image.fromarray(array).save(name)
    answer = cli("predict", "a.png", "b.png", "c.png", f"run={run}", *QUICK)
    assert answer.code == 0
    text = "2 of 3 images have values outside dataset.range=[0,255] (25 % of their values), clipped."
    assert answer.lines().count(text) == 1
    assert cli("embed", "a.png", "b.png", "c.png", f"run={run}", "map=0", "projector=0", *QUICK).lines()[0] == text


def with_range(value: list[int] | None, older: bool = False) -> Path:
    """Set the range of the finished classifier; an older version's run has none."""
    run = runs("finetune")[-1]
    content = checkpoint.load(run / "best.pt")
    content["config"]["dataset"]["range"] = value
    if older:
        del content["config"]["dataset"]["range"]
    checkpoint.save(run / "best.pt", content)
    return run


@pytest.mark.parametrize("older", [True, False])
def test_a_run_without_a_range_reads_all_16_bits_and_refuses_other_kinds(in_world: Path, cli: Cli, older: bool) -> None:
    model = sslrun.load(with_range(None, older), device="cpu")
    assert model.gray_range is None
    flat = np.arange(1024, dtype=np.uint8).reshape(32, 32)
    Image.fromarray(flat).save("flat.png")
    Image.fromarray(flat.astype(np.uint16) * 257).save("deep.png")
    write_tiff("float.tif", (flat / 255).astype("<f4"))
    assert np.array_equal(model.probabilities("flat.png"), model.probabilities("deep.png"))
    for item in ("float.tif", Image.open("float.tif"), Image.fromarray(flat.astype(np.int32))):
        (prediction,) = model.predict(item)
        assert prediction.error is not None
        assert "but there is no dataset.range to read it with; convert it to 8 bits" in prediction.error
    answer = cli("predict", "float.tif", *QUICK)
    assert answer.code == 1
    assert "gray image of 32 bits (float)" in answer.lines()[-1]


def test_a_classifier_on_16_bits_starts_from_a_network_pretrained_on_8_bits(
    in_world: Path, slides: Path, cli: Cli
) -> None:
    """It measures its own range: that of the other images means nothing to it."""
    pretrained = runs("pretrain")[-1]
    assert range_of(pretrained) is None
    answer = cli("finetune", f"init={pretrained}", "dataset=folder", "dataset.root=deep", "mode=probe",
                 "label_fraction=1", *QUICK)  # fmt: skip
    assert answer.code == 0, answer.err
    assert "gray images of 16 bits: range 0 to 4095 (dataset.range)." in answer.err
    assert range_of(runs("finetune")[-1]) == [0, 4095]
    assert sslrun.load(runs("finetune")[-1]).gray_range == [0, 4095]


def test_pretraining_on_8_bits_with_an_unlabeled_folder_of_16_has_the_range_of_that(slides: Path, cli: Cli) -> None:
    data = ("dataset=folder", "dataset.root=png", "dataset.image_size=16", "unlabeled=deep")
    answer = cli("pretrain", *data, *TINY, "train.batch_size=8", "train.steps=1")
    assert answer.code == 0, answer.err
    assert "24 gray images of 16 bits: range 0 to 4095 (dataset.range)." in answer.err
    assert range_of(runs("pretrain")[-1]) == [0, 4095]
    answer = cli("data", "check", *data, *SMALL, "format=json")
    report = json.loads(answer.out)
    assert report["options"]["range"] == [0, 4095]
    assert report["splits"]["unlabeled=deep"]["depths"] == {"16 bits": 24}
    assert len(report["duplicates"]["near"]) >= 18  # each with its copy of 8 bits


def test_data_check_reports_depths_the_range_and_values_outside(slides: Path, cli: Cli) -> None:
    shutil.copy("png/disk/00.png", "deep/disk/flat.png")
    data = ("dataset=folder", "dataset.root=deep", "dataset.image_size=16", *SMALL)
    answer = cli("data", "check", *data)
    assert answer.code == 0, answer.err
    assert "Range of gray images of more than 8 bits: 0 to 4095 (dataset.range); found: 16 bits, 8 bits." in answer.out
    assert "outside" not in answer.out
    answer = cli("data", "check", *data, "dataset.range=[0,1000]", "format=json")
    report = json.loads(answer.out)
    assert report["options"]["range"] == [0, 1000]
    train, test = report["splits"]["train"], report["splits"]["test"]
    assert {k: train["depths"].get(k, 0) + test["depths"].get(k, 0) for k in ("16 bits", "8 bits")} == {
        "16 bits": 24, "8 bits": 1,
    }  # fmt: skip
    assert train["outside_range"]["images"] == train["depths"]["16 bits"]
    assert 0.1 < train["outside_range"]["values"] < 0.3
    (warning,) = [f["text"] for f in report["findings"] if f["level"] == "warning" and "outside" in f["text"]]
    assert f"{train['outside_range']['images']} images in train have values outside dataset.range=[0,1000]" in warning
    assert range_of(runs("check")[-1]) == [0, 1000]


def test_figures_show_files_with_the_range(slides: Path, cli: Cli) -> None:
    file = "deep/disk/00.tif"
    expected = decode(file, 32, gray_range=[0, 4095])
    assert np.array_equal(whole_image(file, 32, [0, 4095]), expected)
    brightest = np.asarray(contact_sheet([[(file, "x")]], [0, 4095]).convert("L"))[40:80, 20:80].max()
    assert brightest > 200
    prediction_figures([{"image": file, "class": "disk", "confidence": 1.0, "unsure": False, "unlike_training": None,
                         "error": None}], Path("figures"), [0, 4095])  # fmt: skip
    with Image.open(next(Path("figures").iterdir())) as figure:
        assert np.asarray(figure.convert("L"))[60:-20, 60:-60].max() > 200
    answer = cli("data", "preview", "dataset=folder", "dataset.root=deep", "dataset.image_size=16", "images=2",
                 "backbone.widths=[4]")  # fmt: skip
    assert answer.code == 0, answer.err
    assert range_of(runs("preview")[-1]) == [0, 4095]
