"""`sslrun guide`: the commands that fit a folder."""

import re
import shutil
from pathlib import Path

import pytest

from sslrun.cli.guide import _pretraining
from tests.helpers import Cli, runs, summary


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslrun.training.estimate.SECONDS", 0.1)
    monkeypatch.setattr("sslrun.cli.guide.FINETUNING", 1e6)  # on a busy machine, too
    monkeypatch.setattr("sslrun.models.published.on_this_machine", lambda: iter(()))


def commands(answer: str) -> list[str]:
    """Return the commands of the table, without their times."""
    return [m[1].strip() for line in answer.splitlines() if (m := re.match(r"\s*(sslrun (?:\S+ )+)\s", line))]


def test_a_small_labeled_folder_is_finetuned(cli: Cli, photos: Path) -> None:
    shutil.copytree(photos, "photos")
    answer = cli("guide", "photos")
    assert answer.code == 0, answer.err
    assert re.search(r"photos: \d+ images, \d+ of them with a label of 2 classes; \d+ test images\.", answer.err)
    size = "dataset.image_size=40"
    assert commands(answer.err) == [
        f"sslrun data check photos {size}", f"sslrun finetune photos {size}", "sslrun evaluate",
        "sslrun predict photos format=csv > predictions.csv",
    ]  # fmt: skip
    assert len(re.findall(r"\d+ (?:s|min) to \d+ (?:s|min)", answer.err)) == 4
    assert "sslrun guide photos --run runs them" in answer.err
    assert not Path("outputs").exists()


def test_without_labels_a_network_is_pretrained_and_images_are_suggested(cli: Cli, photos: Path) -> None:
    Path("all 1").mkdir()
    for file in photos.rglob("*.jpg"):
        shutil.copy(file, "all 1")
    answer = cli("guide", "all 1")
    assert answer.code == 0, answer.err
    assert "no labels; 0 test images." in answer.err
    check, pretrain, *rest = commands(answer.err)
    assert check == "sslrun data check 'all 1' dataset.image_size=40"
    assert re.fullmatch(r"sslrun pretrain 'all 1' train\.epochs=\d+ dataset\.image_size=40", pretrain)
    assert rest == [
        "sslrun suggest 'all 1' n=50 out=to_label", "sslrun finetune to_label init=RUN",
        "sslrun predict 'all 1' format=csv > predictions.csv",
    ]  # fmt: skip


def test_with_labels_too_few_for_a_test_split_more_are_suggested(cli: Cli, photos: Path) -> None:
    Path("few").mkdir()
    for file in photos.rglob("*.jpg"):
        shutil.copy(file, "few")
    Path("few/labels.csv").write_text("file,label\nflower 00.jpg,flower\ntemple 00.jpg,temple\nflower 01.jpg,flower")
    answer = cli("guide", "few")
    assert answer.code == 0, answer.err
    assert "too few images for a test split" in answer.err
    assert "label some more images first" in answer.err
    assert any(line.startswith("sslrun suggest few") for line in commands(answer.err))


def test_a_finetuning_that_takes_long_is_a_probe(cli: Cli, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslrun.cli.guide.FINETUNING", 0.1)
    shutil.copytree(photos, "photos")
    answer = cli("guide", "photos")
    assert commands(answer.err)[1] == "sslrun finetune photos dataset.image_size=40 mode=probe"
    assert re.search(r"labels; without mode=probe in \d+ (s|min) to \d+ (s|min)", " ".join(answer.err.split()))


@pytest.mark.slow
def test_a_distillation_has_a_few_hundred_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["dataset=digits", "pretext=rotation"]  # whose steps are measured without a teacher
    for seconds, images, length in (
        (1e6, 1000, ["train.steps=600"]), (0.1, 1000, ["train.steps=100"]), (1e6, 500, []),  # 100 epochs are 400 steps
    ):  # fmt: skip
        monkeypatch.setattr("sslrun.cli.guide.PRETRAINING", seconds)
        assert _pretraining(overrides, images, True)[1] == length
    monkeypatch.setattr("sslrun.cli.guide.PRETRAINING", 0.1)
    assert _pretraining(overrides, 1000, False)[1] == ["train.epochs=1"]


@pytest.mark.slow
def test_the_commands_can_be_run(cli: Cli, photos: Path) -> None:
    shutil.copytree(photos, "photos")
    answer = cli("guide", "photos", "--run")
    assert answer.code == 0, answer.err
    assert [len(runs(c)) for c in ("check", "finetune", "evaluate", "predict")] == [1, 1, 1, 1]
    assert summary(runs("evaluate")[0])["test/accuracy"] > 0.5
    assert "$ sslrun predict photos format=csv" in answer.err
    assert "photos/" not in answer.out
    assert Path("predictions.csv").read_text() == (runs("predict")[0] / "predictions.csv").read_text()
    assert Path("predictions.csv").read_text().count("photos/") == 60
    Path("predictions.csv").write_text("mine")
    answer = cli("guide", "photos", "--run")
    assert "predictions.csv exists and was left as it is" in answer.err
    assert Path("predictions.csv").read_text() == "mine"


def test_a_folder_that_is_none_is_one_line(cli: Cli) -> None:
    Path("photo.jpg").touch()
    Path("empty").mkdir()
    Path("junk").mkdir()
    for i in range(3):
        Path(f"junk/{i}.png").write_text("no image")
    for given, words in (
        ("nowhere", "nowhere: no such folder"),
        ("photo.jpg", "photo.jpg is a file"),
        ("empty", "no images"),
        ("junk", "none of 3 images of junk that were tried can be read"),
    ):
        answer = cli("guide", given)
        assert answer.code == 1
        assert len(answer.lines()) == (2 if given == "junk" else 1)  # its layout is logged before
        assert words in answer.lines()[-1]
