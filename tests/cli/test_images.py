"""A folder as an argument, a root without `dataset=`, and a command that is given no images."""

import json
import shutil
from pathlib import Path

import pytest

from sslrun.base.errors import UserError
from sslrun.cli.images import refuse_none, with_folder
from sslrun.cli.invocation import parsed
from tests.helpers import QUICK, Cli, runs, summary

FAST = ("dataset.image_size=16", "train.steps=1", "train.batch_size=4", *QUICK)


def overrides(command: str, *arguments: str) -> list[str]:
    """Return the overrides that the arguments of a command stand for."""
    invocation = with_folder(parsed(command, arguments))
    assert not invocation.others
    return list(invocation.overrides)


@pytest.mark.parametrize("command", ["pretrain", "finetune", "compare", "check", "preview"])
def test_a_folder_is_a_data_set(command: str) -> None:
    Path("my photos,1").mkdir()
    as_folder = ["dataset.root=my photos,1", "dataset=folder"]
    assert overrides(command, "my photos,1") == overrides(command, "my photos,1/") == as_folder
    assert overrides(command, "seed=1", "./my photos,1", "-m") == ["seed=1", *as_folder]
    assert overrides(command, "dataset=folder", "my photos,1") == as_folder[::-1]
    assert overrides(command, "dataset.root=my photos,1") == as_folder
    assert overrides(command, "dataset=digits") == ["dataset=digits"]


def test_an_evaluation_reads_another_folder_like_the_data_set_of_the_run() -> None:
    Path("photos").mkdir()
    assert overrides("evaluate", "photos") == overrides("evaluate", "dataset.root=photos") == ["dataset.root=photos"]


@pytest.mark.parametrize(("source", "is_folder"), [("folder", True), ("digits", False)])
def test_a_root_without_a_data_set_is_that_of_the_newest_pretraining_on_a_folder(source: str, is_folder: bool) -> None:
    """Whose label file and image size apply; its images may have moved."""
    Path("photos").mkdir()
    made = Path("outputs/pretrain/a")
    made.mkdir(parents=True)
    config = {"dataset": {"_target_": f"sslrun.data.sources.{source}.{source}"}, "backbone": {"_target_": "a.b"}}
    summary = {"stage": "pretrain", "status": "finished", "config": config, "overrides": [], "wall_time_seconds": 1.0}
    (made / "summary.json").write_text(json.dumps(summary))
    (made / "last.pt").touch()
    as_folder = ["dataset.root=photos", "dataset=folder"]
    assert overrides("finetune", "dataset.root=photos") == (as_folder[:1] if is_folder else as_folder)
    assert overrides("finetune", "photos") == as_folder
    assert overrides("pretrain", "dataset.root=photos") == as_folder


def test_a_resumed_run_has_its_data_set() -> None:
    assert overrides("pretrain", "resume=latest", "dataset.root=moved") == ["resume=latest", "dataset.root=moved"]


def test_two_data_sets_and_files_are_one_line() -> None:
    for name in ("a", "b"):
        Path(name).mkdir()
    for name in ("labels.csv", "photos.tar.gz", "photo.jpg"):
        Path(name).touch()
    for arguments, words in (
        (["a", "b"], "a, b: one folder at a time; several in one sweep: -m dataset.root=a,b"),
        (["a", "dataset=cifar10"], "a and dataset=cifar10: two data sets; remove one of them"),
        (["a", "dataset.root=b"], "a and dataset.root=b: two data sets; remove one of them"),
        (
            ["labels.csv"],
            "labels.csv is a file: name the folder of the images, and the label file with dataset.labels=",
        ),
        (["photos.tar.gz"], "photos.tar.gz is an archive: unpack it, and name the folder"),
        (["photo.jpg"], "photo.jpg is a file: a folder of images is needed"),
    ):
        with pytest.raises(UserError) as error:
            with_folder(parsed("pretrain", arguments))
        assert str(error.value).startswith(words)


@pytest.mark.parametrize("command", ["pretrain", "compare", "check", "preview"])
def test_a_command_without_images_names_the_ways_to_give_some(command: str, cli: Cli) -> None:
    typed = (["data"] if command in ("check", "preview") else []) + [command]
    for more in ((), ("seed=0",), ("backbone=resnet18", "-cd", ".")):
        answer = cli(*typed, *more) if "seed=0" not in more or command != "check" else cli(*typed)
        assert answer.code == 1
        (line,) = answer.lines()
        assert line.startswith(f"sslrun: no images given: name a folder (sslrun {' '.join(typed)} photos)")
        assert "cifar10, digits" in line
        assert "folder," not in line
        assert line.endswith("sslrun demo shows the workflow")
        assert not Path("outputs").exists()
    assert cli(*typed, "--cfg", "job").code == 0
    assert cli(*typed, "--help").code == 0
    for given in ("dataset=digits", "experiment=mine", "+experiment=mine", "resume=latest"):
        refuse_none(parsed(command, [given]))


def test_a_folder_that_does_not_exist_is_one_line(cli: Cli) -> None:
    answer = cli("pretrain", "fotos")
    assert (answer.code, answer.err) == (1, "sslrun: fotos: no such folder; settings are given as key=value\n")
    assert "did you mean pretext=simclr?" in cli("pretrain", "simclr").err


def test_from_a_folder_to_predictions(cli: Cli, photos: Path) -> None:
    """As a newcomer types it; every command ends with the next one."""
    shutil.copytree(photos, "photos")
    ends = []
    for command in (
        ("data", "check", "photos", "dataset.image_size=16"),
        ("data", "preview", "photos", "dataset.image_size=16"),
        ("pretrain", "photos", "pretext=rotation", *FAST),
        ("finetune", "photos", "labels=20", "mode=probe", *QUICK),
        ("evaluate", *QUICK),
        ("predict", "photos", *QUICK),
        ("embed", "photos", *QUICK),
        ("search", "photos/flower/flower 00.jpg", "in=photos", *QUICK),
        ("suggest", "photos", "n=3", "out=to_label", *QUICK),
    ):
        answer = cli(*command)
        assert answer.code == 0, answer.err
        ends.append(answer.lines()[-1])
    run, pretrained = runs("finetune")[-1], runs("pretrain")[-1]
    assert ends == [
        "Next: sslrun finetune photos",
        "Next: sslrun pretrain photos pretext=simclr dataset.image_size=16",
        "Next: sslrun finetune",
        "Next: sslrun evaluate",
        f"Next: sslrun predict image.jpg run={run}",
        *["Next: sslrun suggest photos n=50"] * 3,
        f"Next: sslrun finetune to_label init={run}",
    ]
    assert summary(run)["source"].startswith(str(pretrained))
    assert summary(run)["config"]["dataset"]["image_size"] == 16
