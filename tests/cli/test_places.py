"""Missing files, folders and runs: one line each, before anything starts."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from sslrun.cli.places import quoted_paths
from sslrun.config.compose import compose_config
from sslrun.config.nodes import plain
from tests.helpers import Cli, runs


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pretrain", "dataset=folder", "dataset.root=nowhere"], ["dataset.root=nowhere: no such folder"]),
        (["pretrain", "unlabeled=nowhere"], ["unlabeled=nowhere: no such folder"]),
        (["compare", "dataset=folder", "dataset.root=nowhere"], ["dataset.root=nowhere: no such folder"]),
        (["check", "dataset=folder", "dataset.root=nowhere"], ["dataset.root=nowhere: no such folder"]),
        (["preview", "dataset=folder", "dataset.root=nowhere"], ["dataset.root=nowhere: no such folder"]),
        (["finetune", "init=nowhere/best.pt"], ["init=nowhere/best.pt: no such run or file"]),
        (["finetune", "init=weights.safetensors"], ["init=weights.safetensors: no such run or file"]),
        (["finetune", "init=xyzzy"], ["init=xyzzy: no such pretext task, run or file. Pretrained here: none; or"]),
        (["finetune", "init=simcrl"], ["init=simcrl: no such pretext task, run or file; did you mean simclr?"]),
        (["finetune", "-m", "init=scratch,xyzzy,nowhere/x.pt"], ["init=xyzzy: no such", "init=nowhere/x.pt: no such"]),
        (["finetune", "resume=nowhere"], ["nowhere is not a run of sslrun"]),
        (["evaluate", "run=nowhere", "against=elsewhere"], ["nowhere is not a run", "elsewhere is not a run"]),
        (["predict", "x.jpg", "y.jpg"], ["x.jpg: no such image or folder (and 1 more)", "no finished finetune run"]),
        (["predict"], ["no images given: name files or folders", "no finished finetune run"]),
        (["embed", "x.jpg"], ["x.jpg: no such image or folder", "no finished pretrain or finetune run"]),
        (["search", "x.jpg", "in=nowhere"], ["x.jpg: no such image", "in=nowhere: no such folder", "no finished"]),
        (["suggest", "x", "labeled=nowhere"], ["x: no such image", "labeled=nowhere: no such folder", "no finished"]),
        (["export", "what=backbone"], ["no finished pretrain or finetune run"]),
        (["report", "nowhere", "elsewhere"], ["nowhere is not a run of sslrun", "elsewhere is not a run of sslrun"]),
    ],
)  # fmt: skip
def test_each_missing_path_is_one_line(cli: Cli, arguments: list[str], words: list[str]) -> None:
    of_data = ["data"] if arguments[0] in ("check", "preview") else []
    answer = cli(*of_data, *arguments)
    assert answer.code == 1
    assert [w for w in words if w not in answer.err] == []
    assert len(answer.lines()) == len(words)
    assert not Path("outputs").exists()


def test_existing_paths_are_not_overwritten(cli: Cli) -> None:
    for folder in ("photos", "there"):
        Path(folder).mkdir()
        Path(folder, "note.txt").write_text("mine")
    answer = cli("predict", "photos", "save=there", "sort_into=there/note.txt")
    assert "save=there already exists and is not empty" in answer.err
    answer = cli("embed", "photos", "out=there/note.txt")
    assert "out=there/note.txt already exists" in answer.err
    assert "out=there already exists and is not empty" in cli("suggest", "photos", "out=there").err


def test_missing_images_are_reported_after_the_results_of_the_others(in_world: Path, cli: Cli, photos: Path) -> None:
    there = str(photos / "flower/flower 01.jpg")
    answer = cli("predict", there, "missing.jpg", "format=csv", "device=cpu")
    assert answer.code == 1
    assert answer.out.count("\n") == 3
    assert "missing.jpg: no such image or folder" in cli("search", there, "missing.jpg", f"in={photos}").err


def test_a_folder_of_images_that_moved_is_named(in_world: Path, cli: Cli, photos: Path) -> None:
    run = runs("finetune")[-1]
    for name in ("summary.json", "config.yaml"):
        text = (run / name).read_text()
        (run / name).write_text(text.replace(str(photos), "/moved"))
    answer = cli("evaluate")
    assert answer.err == "sslrun: dataset.root=/moved: no such folder; if it has moved, set dataset.root=...\n"
    assert cli("evaluate", "dataset.root=nowhere").err == "sslrun: dataset.root=nowhere: no such folder\n"
    assert not Path("outputs/evaluate").exists()


AS_TYPED = ("2024", "1e3", "a,b", "ünï", "x#1", "my photos (1)", "do${HOME}", "true", "null folder", "a=b", "c:d",
            "[1]", "it's", "100%", "~x", "x;y", "-5", "写真")  # fmt: skip


@pytest.mark.parametrize("name", AS_TYPED)
def test_roots_may_have_any_name(name: str, cli: Cli) -> None:
    """The folder is found, and has no images."""
    Path(name).mkdir()
    typed = f"'{name}'" if name == "[1]" else name  # a list, if not quoted
    answer = cli("pretrain", "dataset=folder", f"dataset.root={typed}")
    assert answer.err.splitlines()[-1].startswith(f"sslrun: no images in {name} (looked for")


@pytest.mark.parametrize("name", AS_TYPED[:-3])
def test_a_missing_root_of_any_name_is_one_line(name: str, cli: Cli) -> None:
    if "${" in name or name == "[1]":
        return  # an interpolation, a list
    answer = cli("pretrain", "dataset=folder", f"dataset.root={name}")
    assert answer.err == f"sslrun: dataset.root={name}: no such folder\n"


@pytest.mark.parametrize("name", ["net (1).pth", "a=b.pth", "a,b.pth", "2024"])
def test_files_of_weights_may_have_any_name(name: str) -> None:
    overrides = ["backbone=timm", "backbone.name=test_resnet", f"backbone.weights={name}"]
    overrides += ["pretext=distill", f"pretext.teacher={name}", f"pretext.weights={name}"]
    config = plain(compose_config("pretrain", quoted_paths(overrides, False), None))
    assert config["backbone"]["weights"] == config["pretext"]["weights"] == config["pretext"]["teacher"] == name
    assert quoted_paths(["pretext.teacher=resnet18,resnet50"], True) == ["pretext.teacher=resnet18,resnet50"]


def test_paths_of_a_sweep_are_separated_by_commas(cli: Cli) -> None:
    given = ["dataset.root=2024,b (1)", "run=c,null", "seed=1,2", "init=choice(a,b)", "train.steps=3"]
    assert quoted_paths(given, True) == ["dataset.root='2024','b (1)'", "run=c,null", *given[2:]]
    Path("c,d").mkdir()
    assert quoted_paths(["dataset.root=c,d"], True) == ["dataset.root='c,d'"]
    assert quoted_paths(["dataset.root=c,d", "finetune.dataset.root=e,f"], False) == [
        "dataset.root='c,d'",
        "finetune.dataset.root='e,f'",
    ]


@pytest.mark.parametrize("value", [r"^(\d+)_", "[a-z]+", r"(a|b),\d{1,2}$", "it's|x", "a=b", r"\.", '"^(x)"'])
def test_regular_expressions_need_no_quotes(value: str) -> None:
    (quoted,) = quoted_paths([f"dataset.label_pattern={value}"], True)
    parsed = OverridesParser.create().parse_override(quoted)
    assert not parsed.is_sweep_override()
    assert parsed.value() == value.strip('"')
    assert quoted_paths(["dataset.groups=null", "finetune.dataset.groups=x"], False) == [
        "dataset.groups=null",
        "finetune.dataset.groups=x",
    ]


def test_a_missing_label_file_is_one_line(cli: Cli) -> None:
    Path("set").mkdir()
    answer = cli("pretrain", "dataset=folder", "dataset.root=set", "dataset.labels=no (1).csv")
    assert answer.err == "sslrun: dataset.labels=no (1).csv: no such file in the working directory or in set\n"


@pytest.mark.parametrize(
    "pattern", [r"([^/]+)_\d+\.", "[a-z]+", "2024", "{1,2}", "$", "(a|b)${c}", "it's", "a,b", "null_"]
)
def test_regular_expressions_are_typed_as_they_are(pattern: str) -> None:
    for key in ("dataset.groups", "+dataset.groups"):
        (override,) = quoted_paths([f"{key}={pattern}"], True)
        config = compose_config("pretrain", ["dataset=folder", "dataset.root=a", override], None)
        assert plain(config)["dataset"]["groups"] == pattern
    quoted = ["dataset.groups='a.b'", 'dataset.groups="(a)"', "dataset.groups=null", "dataset.groups="]
    assert quoted_paths(quoted, False) == quoted


def test_an_invalid_expression_for_labels_is_one_line_before_anything_is_read(cli: Cli) -> None:
    Path("set").mkdir()
    answer = cli("pretrain", "dataset=folder", "dataset.root=set", "dataset.label_pattern=(a")
    assert answer.err.startswith("sslrun: dataset.label_pattern=(a is not a regular expression: missing )")
    assert len(answer.lines()) == 1
