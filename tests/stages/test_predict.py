"""`sslrun predict`: formats, uncertain predictions, sorted copies, odd input."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sslrun
from sslrun.run import checkpoint
from sslrun.stages import predict
from tests.helpers import QUICK, Cli, ended, run_here, runs, spawn, summary


def test_every_format_has_the_same_predictions(in_world: Path, cli: Cli, photo_files: list[str]) -> None:
    result = {
        f: cli("predict", *photo_files, f"format={f}", "figures=0", *QUICK) for f in ("json", "jsonl", "csv", "table")
    }
    assert all(s.code == 0 for s in result.values())
    rows = json.loads(result["json"].out)
    assert [json.loads(line) for line in result["jsonl"].out.splitlines()] == rows
    table = list(csv.DictReader(io.StringIO(result["csv"].out)))
    assert [r["image"] for r in rows] == photo_files == [r["image"] for r in table]
    assert [r["class"] for r in rows] == [r["class_1"] for r in table]
    threshold = summary(runs("finetune")[-1])["val/confidence_threshold"]
    assert [r["unsure"] for r in rows] == [r["confidence"] < threshold for r in rows]
    assert [r["unsure"] for r in table] == [str(r["unsure"]).lower() for r in rows]
    for run in runs("predict"):
        made = summary(run)
        assert json.loads((run / "predictions.json").read_text()) == rows
        assert list(csv.DictReader((run / "predictions.csv").open())) == table
        assert (made["images"], made["unsure"]) == (len(rows), sum(r["unsure"] for r in rows))
        assert (made["precision"], made["config"]["run"]) == ("fp32", str(runs("finetune")[-1]))
        assert not list((run / "figures").glob("*.png"))
    for r in rows:
        assert r["confidence"] == r["top"][0]["confidence"] >= r["top"][1]["confidence"]
        assert sum(g["confidence"] for g in r["top"]) == pytest.approx(1, abs=2e-4)  # of two classes
        assert Path(r["image"]).name in result["table"].out


def test_names_on_standard_input(
    in_world: Path, cli: Cli, photo_files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = "\n".join(photo_files) + "\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(names.encode())))
    answer = cli("predict", "-", "format=jsonl", "figures=0", *QUICK)
    assert answer.code == 0, answer.err
    assert [json.loads(line)["image"] for line in answer.out.splitlines()] == photo_files


def test_an_image_below_the_threshold_is_unsure(in_world: Path, cli: Cli, photo_files: list[str]) -> None:
    def unsure(value: str) -> list[bool]:
        result = cli("predict", *photo_files, "format=json", f"unsure={value}", "figures=0", *QUICK)
        assert result.code == 0, result.err
        return [r["unsure"] for r in json.loads(result.out)]

    rows = json.loads(cli("predict", *photo_files, "format=json", "figures=0", *QUICK).out)
    middle = sorted(r["confidence"] for r in rows)[len(rows) // 2]
    assert unsure(str(middle)) == [r["confidence"] < middle for r in rows]
    assert not any(unsure("null"))
    assert unsure("1.0") == [r["confidence"] < 1 for r in rows]
    assert "unsure: must be" in cli("predict", *photo_files, "unsure=often", *QUICK).err


def test_copies_are_sorted_into_classes_and_nothing_is_overwritten(
    in_world: Path, cli: Cli, photo_files: list[str]
) -> None:
    twin = Path("twin", Path(photo_files[0]).name)
    twin.parent.mkdir()
    twin.write_bytes(Path(photo_files[0]).read_bytes())
    result = cli(
        "predict", *photo_files, str(twin), "sort_into=sorted", "save=drawn", "unsure=null", "format=json", *QUICK
    )
    assert result.code == 0, result.err
    rows = json.loads(result.out)
    copies = sorted(p.relative_to("sorted").as_posix() for p in Path("sorted").rglob("*.jpg"))
    named = [f"{r['class']}/{Path(r['image']).name}" for r in rows[:-1]]
    assert copies == sorted([*named, f"{rows[0]['class']}/{twin.stem}_2.jpg"])
    assert all(Path(f).is_file() for f in photo_files)
    assert len(list(Path("drawn").glob("*.png"))) == len(rows)
    for key in ("sort_into=sorted", "save=drawn", f"save={twin}"):
        again = cli("predict", *photo_files, key, *QUICK)
        assert again.code == 1
        assert "already exists and is not empty" in again.err
    doubts = cli("predict", *photo_files, "sort_into=doubts", "unsure=1.0", *QUICK)
    assert doubts.code == 0, doubts.err
    assert len(list(Path("doubts/_unsure").iterdir())) == sum(r["confidence"] < 1 for r in rows[:-1]) > 0


def test_odd_class_names_get_valid_and_unique_folders() -> None:
    from sslrun.stages.predict import _folders

    names = ("rose", "a/b", "..", "", "_unsure", "x\n", "ü 花", "a:b", "a_b", "__unsure")
    assert list(_folders(names)) == list(names)
    assert list(_folders(names).values()) == [
        "rose", "a_b", "_..", "_", "__unsure", "x_", "ü 花", "a_b_2", "a_b_3", "__unsure_2"
    ]  # fmt: skip


@pytest.mark.slow
def test_any_file_name_survives_standard_input_and_csv(in_world: Path, photo_files: list[str]) -> None:
    names = [
        "ff\x0c.jpg",
        "ls\u2028.jpg",
        "cr\r.jpg",
        os.fsdecode(b"raw\xff.jpg"),
        "b\\'c.jpg",
        "d\\${e}.jpg",
        "-f.jpg",
    ]
    for name in names:
        shutil.copy(photo_files[0], name)
    command = [sys.executable, "-m", "sslrun", "predict"]
    how = ["figures=0", *QUICK]
    given = b"\r\n".join(os.fsencode(n) for n in names) + b"\n"
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    for format in ("jsonl", "csv"):
        done = subprocess.run([*command, "-", f"format={format}", *how], input=given, capture_output=True, env=strict)
        assert done.returncode == 0, done.stderr
        text = done.stdout.decode()
        csv_rows = list(csv.DictReader(io.StringIO(text, newline="")))
        rows = csv_rows if format == "csv" else [json.loads(x) for x in text.split("\n") if x]
        assert len(rows) == len(names)
        assert [r["image"] for r in rows if "raw" not in r["image"]] == [n for n in names if "raw" not in n]
    named = subprocess.run([*command, *names[:6], "format=jsonl", *how], capture_output=True)
    assert named.returncode == 0, named.stderr
    assert len(named.stdout.splitlines()) == 6


def test_predict_on_names_that_look_like_settings_and_bad_files(in_world: Path, cli: Cli, photos: Path) -> None:
    odd = [
        "a=b.jpg",
        "it's, an [image] {x}.jpg",
        "tab\tü.jpg",
        "-dash.jpg",
        "back\\slash.jpg",
        "$dollar ${x}.jpg",
    ]
    for name in odd:
        shutil.copy(photos / "temple/temple 00.jpg", name)
    answer = cli("predict", "format=csv", "top=1", *QUICK, "--", *odd)
    assert answer.code == 0
    rows = list(csv.DictReader(io.StringIO(answer.out)))
    assert [r["image"] for r in rows] == odd
    assert len({(r["class_1"], r["confidence_1"]) for r in rows}) == 1
    Path("text.jpg").write_text("hello")
    answer = cli("predict", "a=b.jpg", "text.jpg", "missing.jpg", "format=json", *QUICK)
    assert answer.code == 1
    rows = json.loads(answer.out)
    assert [r["error"] for r in rows] == [None, "not an image in a supported format", "no such file"]
    assert "2 of 3 images could not be read" in answer.err
    Path("empty").mkdir()
    assert "no images in empty" in cli("predict", "empty").err


def test_predict_draws_images_and_prints_a_table(in_world: Path, cli: Cli, photos: Path) -> None:
    answer = cli("predict", str(photos / "flower/flower 01.jpg"), *QUICK)
    assert "flower 01.jpg" in answer.out
    assert re.search(r" \d+\.\d % .* \d+\.\d %", answer.out)
    assert re.search(r"^1 image in [\d.]+ s; written to outputs/predict", answer.err, re.M)
    figures = list(Path("outputs/predict").glob("*/figures/*.png"))
    assert len(figures) == 1


def test_predict_writes_only_results_to_stdout(in_world: Path, photos: Path) -> None:
    process = spawn(run_here, "predict", str(photos / "flower"), "format=json", out="answer", err="messages")
    assert ended(process) == 0
    assert len(json.loads(Path("answer").read_text())) == 30
    assert "written to outputs/predict" in Path("messages").read_text()


@pytest.fixture
def best(in_world: Path) -> Path:
    """The best checkpoint of the classifier."""
    (result,) = Path("outputs/finetune").glob("*/best.pt")
    return result


def with_metrics(best: Path, **metrics: float) -> None:
    content = checkpoint.load(best)
    named = {f"val/{k}": v for k, v in metrics.items()}
    checkpoint.save(best, {**content, "metrics": {**content["metrics"], **named}})


def predictions(cli: Cli, photos: Path, *settings: str) -> list[dict[str, Any]]:
    answer = cli("predict", str(photos / "flower"), "format=json", "figures=0", *settings, *QUICK)
    assert answer.code == 0, answer.err
    result: list[dict[str, Any]] = json.loads(answer.out)
    return result


def test_by_default_predictions_below_the_threshold_of_validation_are_unsure(
    best: Path, cli: Cli, photos: Path
) -> None:
    with_metrics(best, temperature=30.0)  # so that no confidence is rounded to 1
    confidences = sorted(p["confidence"] for p in predictions(cli, photos, "unsure=null"))
    for threshold in (confidences[0], confidences[9], 1.0):
        with_metrics(best, confidence_threshold=threshold)
        result = predictions(cli, photos)
        unsure = [p["confidence"] < threshold for p in result]
        assert [p["unsure"] for p in result] == unsure
        assert summary(runs("predict")[-1])["unsure"] == sum(unsure)
        rows = csv.DictReader((runs("predict")[-1] / "predictions.csv").open())
        assert [r["unsure"] for r in rows] == [str(u).lower() for u in unsure]
    assert sum(p["unsure"] for p in result) == 30


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        (None, "without validation images there is no confidence threshold"),
        ({"highest_confidence": 0.875}, "a calibrated confidence of 95.0 %; the highest is 87.5 %"),
        ({"accuracy_if_confident": 0.875}, "the accuracy on validation is 95.0 %; the highest is 87.5 %"),
    ],
)
def test_without_a_threshold_no_image_is_called_sure_or_unsure(
    known: dict[str, float] | None, reason: str, best: Path, cli: Cli, photos: Path
) -> None:
    content = checkpoint.load(best)
    metrics = {k: v for k, v in content["metrics"].items() if "confidence" not in k and known is not None}
    checkpoint.save(best, {**content, "metrics": metrics | {f"val/{k}": v for k, v in (known or {}).items()}})
    Path("broken.png").write_text("no image")
    common = (str(photos / "flower"), "broken.png", "figures=0", *QUICK)
    answer = cli("predict", *common, "format=json", "sort_into=sorted")
    rows = json.loads(answer.out)
    assert [r["unsure"] for r in rows] == [None] * 31
    (line,) = [line for line in answer.err.splitlines() if "unsure" in line]
    assert line.startswith("No image was checked for being unsure, so none is in _unsure: ")
    assert line.endswith(f"{reason}.")
    assert {p.name for p in Path("sorted").iterdir()} <= {"flower", "temple", "_unlike_training"}
    assert sum(1 for p in Path("sorted").rglob("*.jpg")) == 30
    assert {r["unsure"] for r in csv.DictReader((runs("predict")[-1] / "predictions.csv").open())} == {""}
    assert {p.unsure for p in sslrun.load(best.parent, device="cpu").predict(str(photos / "flower/flower 01.jpg"))} == {
        None
    }
    rows = json.loads(cli("predict", *common, "format=json", "unsure=0.8").out)
    assert [r["unsure"] for r in rows] == [None if r["error"] else r["confidence"] < 0.8 for r in rows]


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({}, "aimed at an accuracy of 95 % above it, not certified"),  # of an older version
        ({"certified": 0.0, "correct": 38.0, "accepted": 40.0}, "aimed at an accuracy of 95 % above it, not certified: "
         "38 of 40 predictions on validation are correct, 95 % CI 83.5 to 98.6"),
        ({"certified": 1.0, "correct": 93.0, "accepted": 93.0}, "accuracy above it at least 95 %, certified with 95 % "
         "confidence: 93 of 93 predictions on validation are correct"),
    ],
)  # fmt: skip
def test_what_is_known_of_the_threshold_is_printed(
    metrics: dict[str, float], words: str, best: Path, cli: Cli, photos: Path
) -> None:
    content = checkpoint.load(best)
    kept = {k: v for k, v in content["metrics"].items() if "confidence" not in k}
    given = {
        "val/temperature": 30.0,
        "val/confidence_threshold": 1.0,
        **{f"val/confidence_{k}": v for k, v in metrics.items()},
    }
    checkpoint.save(best, {**content, "metrics": kept | given})
    answer = cli("predict", str(photos / "flower"), "figures=0", *QUICK)
    assert f"30 of 30 are unsure: below 100.0 % confidence ({words})." in answer.err
    assert sslrun.load(best.parent, device="cpu").confidence_certified == bool(metrics.get("certified"))
    content["config"]["dataset"]["columns"] = {"group": "plot"}  # an interval over images would be too narrow
    checkpoint.save(best, {**content, "metrics": kept | given})
    answer = cli("predict", str(photos / "flower"), "figures=0", *QUICK)
    assert f"below 100.0 % confidence ({words.split(', 95 % CI')[0]})." in answer.err


def test_views_and_temperature_are_those_of_the_python_api(best: Path, cli: Cli, photos: Path) -> None:
    with_metrics(best, temperature=30.0)  # so that no confidence is rounded to 1
    model = sslrun.load(best.parent, device="cpu")
    files = sorted(map(str, (photos / "flower").glob("*.jpg")))
    for views in (1, 3):
        result = predictions(cli, photos, f"views={views}")
        expected = model.probabilities(files, views=views).max(1)
        assert [p["confidence"] for p in result] == pytest.approx(expected.tolist(), abs=1e-4)


def test_images_unlike_the_training_images_are_marked(in_world: Path, cli: Cli, photo_files: list[str]) -> None:
    Path("foreign").mkdir()
    noise = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(f"foreign/{i}.png")
    answer = cli("predict", *photo_files, "foreign", "format=json", "figures=0", "sort_into=sorted", *QUICK)
    rows = json.loads(answer.out)
    assert [r["unlike_training"] for r in rows[-3:]] == [True] * 3
    assert all(r["distance"] > 1 for r in rows[-3:])
    marked = sum(r["unlike_training"] for r in rows)
    assert marked <= 3 + len(photo_files) // 10
    assert f"{marked} of {len(rows)} are unlike the training images: " in answer.err
    assert (
        summary(runs("predict")[-1])["unlike_training"]
        == marked
        == len(list(Path("sorted/_unlike_training").iterdir()))
    )
    table = list(csv.DictReader((runs("predict")[-1] / "predictions.csv").open()))
    assert [r["unlike_training"] for r in table] == [str(r["unlike_training"]).lower() for r in rows]
    model = sslrun.load(runs("finetune")[-1], device="cpu")
    assert [p.unlike_training for p in model.predict("foreign/0.png")] == [True]


def test_a_run_without_the_distances_of_its_training_images_says_so(
    best: Path, cli: Cli, photo_files: list[str]
) -> None:
    best.with_name("novelty.npz").write_bytes(b"half")
    answer = cli("predict", photo_files[0], *QUICK)
    assert answer.code == 1
    assert "novelty.npz cannot be read" in answer.err
    assert cli("embed", photo_files[0], "map=0", "projector=0", *QUICK).code == 0  # which does not need it
    best.with_name("novelty.npz").unlink()
    answer = cli("predict", photo_files[0], "format=json", *QUICK)
    assert "Not checked for images unlike the training images" in answer.err
    assert [(r["unlike_training"], r["distance"]) for r in json.loads(answer.out)] == [(None, None)]


def test_a_damaged_summary_is_named_once(in_world: Path, cli: Cli, photo_files: list[str]) -> None:
    (broken := runs("finetune")[-1].with_name("2020-01-01_00-00-00-000000")).mkdir()
    (broken / "summary.json").write_text("{")
    answer = cli("predict", photo_files[0], "figures=0", *QUICK)
    assert answer.err.count(f"Skipped {broken / 'summary.json'}: it cannot be read") == 1


def predicted(
    image: str, *classes: str, unsure: bool | None = False, distance: float | None = 0.5, error: str | None = None
) -> dict[str, Any]:
    top = [{"class": c, "confidence": round(0.6 / (i + 1), 2)} for i, c in enumerate(classes)]
    first = top[0] if top else {"class": None, "confidence": None}
    novelty = {"unlike_training": None if distance is None else distance > 1, "distance": distance}
    return {"image": image, **first, "unsure": unsure, **novelty, "top": top, "error": error}


def test_tables_have_empty_cells_for_unreadable_images() -> None:
    rows = [predicted("a.jpg", unsure=None, distance=None, error="empty"), predicted("b.jpg", "x", "y")]
    rows += [predicted("c.jpg", "z", unsure=True), predicted("d.jpg", "z", unsure=True, distance=2.5)]
    columns = ["image", "class_1", "confidence_1", "class_2", "confidence_2", "unsure", "unlike_training", "distance"]
    columns += ["error"]
    flat = predict._flat(rows)
    assert all(list(r) == columns for r in flat)
    assert [list(r.values()) for r in flat] == [
        ["a.jpg", None, None, None, None, None, None, None, "empty"],
        ["b.jpg", "x", 0.6, "y", 0.3, False, False, 0.5, None],
        ["c.jpg", "z", 0.6, None, None, True, False, 0.5, None],
        ["d.jpg", "z", 0.6, None, None, True, True, 2.5, None],
    ]
    lines = [line.split() for line in predict._table(rows).splitlines()]
    assert ["a.jpg", "empty"] in lines
    assert ["b.jpg", "x", "60.0", "%", "y", "30.0", "%"] in lines
    assert ["c.jpg", "z,", "unsure", "60.0", "%"] in lines
    assert ["d.jpg", "z,", "unlike", "training", "60.0", "%"] in lines


def test_doubtful_and_unreadable_images_are_not_sorted_into_classes() -> None:
    for folder in ("one", "two", "three"):
        Path(folder).mkdir()
        Path(folder, "a.b.jpg").write_text(folder)
    rows = [predicted(f"{f}/a.b.jpg", "x/y", "z") for f in ("one", "two", "three")]
    rows += [predicted("one/a.b.jpg", "z", unsure=True), predicted("two/a.b.jpg", "z", unsure=True, distance=1.001)]
    rows += [predicted("gone.jpg", error="no such file")]
    predict._sort(rows, Path("out"), ["x/y", "z"])
    copies = {str(p.relative_to("out")): p.read_text() for p in Path("out").rglob("*.jpg")}
    assert copies == {
        "x_y/a.b.jpg": "one", "x_y/a.b_2.jpg": "two", "x_y/a.b_3.jpg": "three", "_unsure/a.b.jpg": "one",
        "_unlike_training/a.b.jpg": "two",
    }  # fmt: skip
    assert not Path("out/z").exists()
