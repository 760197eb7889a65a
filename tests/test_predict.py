"""`sslrun predict` and the Python side of it: formats, doubts, sorted copies, strange input."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sslrun
from sslrun.base.errors import UserError
from sslrun.models.initialization import resolve
from sslrun.models.trained import load_network
from sslrun.runs import checkpoint
from tests.conftest import QUICK, Cli
from tests.test_cli import runs


@pytest.fixture
def files(photos: Path) -> list[str]:
    return [str(p) for p in sorted(photos.rglob("*.jpg"))[::6]]


def test_every_format_says_the_same(in_world: Path, cli: Cli, files: list[str]) -> None:
    answer = {f: cli("predict", *files, f"format={f}", "figures=0", *QUICK) for f in ("json", "jsonl", "csv", "table")}
    assert all(s.code == 0 for s in answer.values())
    rows = json.loads(answer["json"].out)
    assert [json.loads(line) for line in answer["jsonl"].out.splitlines()] == rows
    table = list(csv.DictReader(io.StringIO(answer["csv"].out)))
    assert [r["image"] for r in rows] == files == [r["image"] for r in table]
    assert [r["class"] for r in rows] == [r["class_1"] for r in table]
    assert [str(r["unsure"]).lower() for r in rows] == [r["unsure"] for r in table]
    for r in rows:
        assert r["confidence"] == r["top"][0]["confidence"] >= r["top"][1]["confidence"]
        assert sum(g["confidence"] for g in r["top"]) == pytest.approx(1, abs=2e-4)  # of two classes
        assert Path(r["image"]).name in answer["table"].out


def test_names_on_standard_input(in_world: Path, files: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sslrun", "predict", "-", "format=jsonl", "figures=0", *QUICK],
        input="\n".join(files) + "\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert [json.loads(line)["image"] for line in done.stdout.splitlines()] == files


def test_below_the_threshold_a_picture_is_unsure(in_world: Path, cli: Cli, files: list[str]) -> None:
    def unsure(value: str) -> list[bool]:
        answer = cli("predict", *files, "format=json", f"unsure={value}", "figures=0", *QUICK)
        assert answer.code == 0, answer.err
        return [r["unsure"] for r in json.loads(answer.out)]

    rows = json.loads(cli("predict", *files, "format=json", "figures=0", *QUICK).out)
    middle = sorted(r["confidence"] for r in rows)[len(rows) // 2]
    assert unsure(str(middle)) == [r["confidence"] < middle for r in rows]
    assert not any(unsure("null"))
    assert all(unsure("1.0"))
    assert "unsure: must be" in cli("predict", *files, "unsure=often", *QUICK).err


def test_copies_are_sorted_into_classes_and_nothing_is_overwritten(in_world: Path, cli: Cli, files: list[str]) -> None:
    twin = Path("twin", Path(files[0]).name)
    twin.parent.mkdir()
    twin.write_bytes(Path(files[0]).read_bytes())
    answer = cli("predict", *files, str(twin), "sort_into=sorted", "save=drawn", "unsure=null", "format=json", *QUICK)
    assert answer.code == 0, answer.err
    rows = json.loads(answer.out)
    copies = sorted(p.relative_to("sorted").as_posix() for p in Path("sorted").rglob("*.jpg"))
    named = [f"{r['class']}/{Path(r['image']).name}" for r in rows[:-1]]
    assert copies == sorted([*named, f"{rows[0]['class']}/{twin.stem}_2.jpg"])
    assert all(Path(f).is_file() for f in files)
    assert len(list(Path("drawn").glob("*.png"))) == len(rows)
    for key in ("sort_into=sorted", "save=drawn", f"save={twin}"):
        again = cli("predict", *files, key, *QUICK)
        assert again.code == 1
        assert "is there already and not empty" in again.err
    doubts = cli("predict", *files, "sort_into=doubts", "unsure=1.0", *QUICK)
    assert doubts.code == 0, doubts.err
    assert len(list(Path("doubts/_unsure").iterdir())) == len(files)


def test_odd_class_names_make_plain_folders_each_its_own() -> None:
    from sslrun.stages.predict import _folders

    names = ("rose", "a/b", "..", "", "_unsure", "x\n", "ü 花", "a:b", "a_b", "__unsure")
    assert list(_folders(names)) == list(names)
    assert list(_folders(names).values()) == [
        "rose", "a_b", "_..", "_", "__unsure", "x_", "ü 花", "a_b_2", "a_b_3", "__unsure_2"
    ]  # fmt: skip


def test_a_script_without_a_guard_may_predict_many_files(in_world: Path, files: list[str]) -> None:
    Path("script.py").write_text(
        "import sys\nimport sslrun\nimport sslrun.data.workers as w\nw.WORTH_PROCESSES = 2\n"
        "print([p.class_name for p in sslrun.load(device='cpu').predict(sys.argv[1:])])\n"
    )
    done = subprocess.run([sys.executable, "script.py", *files], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([p.class_name for p in sslrun.load(device="cpu").predict(files)])
    assert "predicting" not in done.stderr


def test_a_picture_that_is_given_stays_as_it_is(in_world: Path, files: list[str], tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    large = Image.open(files[0]).resize((600, 400))
    large.save("large.jpg", exif=exif)
    image = Image.open("large.jpg")
    model = sslrun.load(device="cpu")
    assert model.predict(image)[0].error is None
    assert image.size == (600, 400)
    assert image.getexif()[0x0112] == 6
    assert np.allclose(model.probabilities(image), model.probabilities("large.jpg"), atol=0.05)  # decoded small there
    cut = Path(files[0]).read_bytes()[:-300]
    Path("cut.jpg").write_bytes(cut)
    assert "damaged" in (model.predict([Image.open("cut.jpg")])[0].error or "")
    with pytest.raises(UserError, match="damaged"):
        model.embed([Image.open("cut.jpg")])


def test_more_views_say_the_same_of_a_picture_whatever_stands_beside_it(in_world: Path, files: list[str]) -> None:
    model = sslrun.load(device="cpu")
    together = model.probabilities(files[:4], views=3)
    alone = np.concatenate([model.probabilities(f, views=3) for f in files[:4]])
    assert np.allclose(together, alone, atol=1e-5)
    assert not np.allclose(together, model.probabilities(files[:4]), atol=1e-5)


def test_sure_enough_is_as_sure_as_the_threshold(in_world: Path, files: list[str]) -> None:
    """All of them, where all are equally sure: the threshold is one of them."""
    from sslrun.evaluation.calibration import tempered, threshold

    model = sslrun.load(device="cpu")
    p = tempered(np.tile([[0.9999, 0.0001]], (50, 1)), 2.7)
    model.confidence_threshold = threshold(p, np.zeros(50, int))
    model._calibrated = lambda pixels, views, batch_size: p[: len(pixels)]  # type: ignore[method-assign]
    assert not any(g.unsure for g in model.predict(files))


@pytest.mark.slow
def test_any_name_comes_through_standard_input_and_csv(in_world: Path, files: list[str]) -> None:
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
        shutil.copy(files[0], name)
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


def test_what_is_no_picture_and_no_number_is_said(in_world: Path) -> None:
    model = sslrun.load(device="cpu")
    for bad in (np.zeros((0, 0, 3), np.uint8), np.zeros((5, 0), np.uint8), None, b"a.jpg", 3):
        with pytest.raises(UserError, match="is no picture"):
            model.predict([bad])  # type: ignore[list-item]
    for values in (torch.rand(3, 9, 9) * 255, torch.full((3, 9, 9), torch.nan)):
        with pytest.raises(UserError, match=r"floats must lie in \[0, 1\]"):
            model.predict([values])
    for key in ("top", "views", "batch_size"):
        with pytest.raises(UserError, match=f"{key}=0: must be a whole number"):
            model.predict([torch.rand(3, 9, 9)], **{key: 0})


def test_places_that_cannot_be_written_are_said_before_the_work(in_world: Path, cli: Cli, files: list[str]) -> None:
    Path("mine.txt").write_text("kept")
    for stage, key in (
        ("predict", "save"),
        ("predict", "sort_into"),
        ("embed", "out"),
        ("suggest", "out"),
        ("export", "out"),
    ):
        given = files if stage != "export" else []
        answer = cli(stage, *given, f"{key}=mine.txt/x", *(QUICK if stage != "export" else ()))
        assert answer.code == 1
        assert answer.err.splitlines()[-1].startswith(f"sslrun: {key}=mine.txt/x"), answer.err
        assert "Traceback" not in answer.err
    assert Path("mine.txt").read_text() == "kept"
    assert "each wants a folder of its own" in cli("predict", *files, "save=both", "sort_into=both", *QUICK).err
    assert "nothing to go on with" in cli("embed", *files, "resume=outputs/pretrain/x").err
    assert "leave -m away" in cli("predict", "-m", "-", "top=1,2").err


def test_no_device_and_no_names_are_said(in_world: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="device=gpu: there are auto, cpu, cuda"):
        sslrun.load(device="gpu")
    for stage in ("predict", "embed", "suggest"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
        answer = cli(stage, "-", *QUICK)
        assert answer.code == 1
        assert "no picture named on standard input" in answer.err


def test_the_python_side_says_what_the_command_says(in_world: Path, cli: Cli, files: list[str]) -> None:
    rows = json.loads(cli("predict", *files, "format=json", "figures=0", *QUICK).out)
    model = sslrun.load(runs("finetune")[0], device="cpu")
    result = model.predict(files)
    assert [(p.image, p.class_name, p.unsure) for p in result] == [(r["image"], r["class"], r["unsure"]) for r in rows]
    assert [p.confidence for p in result] == pytest.approx([r["confidence"] for r in rows], abs=1e-4)
    p = model.probabilities(files)
    assert p.shape == (len(files), 2)
    assert p.sum(1) == pytest.approx(1)
    assert [model.class_names[k] for k in p.argmax(1)] == [r["class"] for r in rows]


def test_loading_leaves_the_random_state_as_it_was(in_world: Path) -> None:
    for run in (runs("pretrain")[0], runs("finetune")[0]):
        before = torch.get_rng_state()
        sslrun.load(run, device="cpu")
        assert torch.equal(torch.get_rng_state(), before)


def test_a_checkpoint_may_say_which_encoder_goes_on(in_world: Path) -> None:
    """Such as a teacher's, which lies beside a student's."""
    run = runs("pretrain")[0]
    content = checkpoint.load(run / "last.pt")
    encoder = {k.removeprefix("encoder."): v for k, v in content["model"].items() if k.startswith("encoder.")}
    both = {f"encoder.{k}": torch.zeros_like(v) for k, v in encoder.items()}
    both |= {f"teacher.encoder.{k}": v for k, v in encoder.items()}
    checkpoint.save(run / "last.pt", {**content, "model": both, "downstream": "teacher.encoder"})
    loaded = load_network(run).encoder.state_dict()
    weights = resolve(str(run), {}, {}, {}).weights
    assert weights is not None
    assert weights.keys() == loaded.keys() == encoder.keys()
    assert all(torch.equal(v, loaded[k]) and torch.equal(v, weights[k]) for k, v in encoder.items())


def test_pictures_in_memory_are_as_good_as_files(in_world: Path, photos: Path) -> None:
    model = sslrun.load()
    file = sorted(photos.rglob("*.jpg"))[0]
    with Image.open(file) as opened:
        image = opened.convert("RGB").resize((32, 32))  # so that no decoder shrinks it on the way
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    ways: list[Any] = [image, array, tensor, tensor.float() / 255]
    p = model.probabilities(ways)
    assert np.abs(p - p[0]).max() < 1e-6
    assert model.probabilities(image).shape == (1, 2)
    assert model.predict(file)[0].image == str(file)
    assert model.predict([]) == []
    mixed = model.predict([image, "nowhere.jpg", file])
    assert [m.error for m in mixed] == [None, "no such file", None]
    with pytest.raises(UserError, match=r"nowhere\.jpg: no such file"):
        model.embed(["nowhere.jpg"])
    with pytest.raises(UserError, match="is no picture: give H x W x 3"):
        model.predict(np.zeros((4, 4, 7), np.uint8))


def test_embeddings_of_any_stage(in_world: Path, files: list[str]) -> None:
    model = sslrun.load()
    assert model.embed(files).shape == (len(files), 16)
    assert model.embed(files, stage=1).shape == (len(files), 8)
    assert np.array_equal(model.embed(files, stage=2), model.embed(files))
    assert np.allclose(model.embed(files, batch_size=3), model.embed(files), atol=1e-5)
    with pytest.raises(UserError, match="stage=3: this backbone has stages 1 to 2"):
        model.embed(files, stage=3)


def test_views_are_averaged_and_always_the_same(in_world: Path, files: list[str]) -> None:
    model = sslrun.load()
    once, nine = model.probabilities(files), model.probabilities(files, views=9)
    assert not np.allclose(once, nine, atol=1e-4)
    assert np.array_equal(nine, model.probabilities(files, views=9))
    assert nine.sum(1) == pytest.approx(1)
