"""Overrides of the command line."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sslrun.base.errors import UserError
from sslrun.config.overrides import check_overrides, composed_configs
from sslrun.stages.table import settings
from sslrun.stages.table import settings as settings_named
from tests.helpers import TINY, Cli, bounded, runs, summary


def test_case_68_and_69_overrides_win_and_the_saved_config_runs_again(cli: Cli) -> None:
    arguments = (
        "pretrain",
        "dataset=digits",
        "pretext=simclr",
        "pretext.temperature=0.3",
        "dataset.max_images=100",
        *TINY,
        "train.steps=3",
    )
    assert cli(*arguments).code == 0
    first = summary(runs("pretrain")[-1])
    assert first["config"]["pretext"]["temperature"] == 0.3
    Path("mine/experiment").mkdir(parents=True)
    Path("mine/experiment/again.yaml").write_text(
        "# @package _global_\n" + (runs("pretrain")[-1] / "config.yaml").read_text()
    )
    assert cli("pretrain", "-cd", "mine", "experiment=again").code == 0
    second = summary(runs("pretrain")[-1])
    assert second["train/loss"] == first["train/loss"]
    assert second["config"] == first["config"]


WORDS = [
    "pretext", "simclr", "train", ".steps", ".batch_size", "backbone", ".widths", "dataset", ".root", "device", "seed",
    "=", "==", ",", "[", "]", "{", "}", "(", ")", "'", '"', "\\", "$", "${", "}", "~", "+", "++", "@", ":", "/", " ",
    "null", "true", "1", "-1", "0.5", "1e400", "nan", "choice(", "range(", "glob(", "*", "é", "\x00", "\n", "oc.env:X",
    "hydra", ".run.dir", "_target_", "???",
]  # fmt: skip


@bounded(20)  # each composes the config a few times
@given(st.lists(st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=3)), max_size=6).map("".join), max_size=3))
@example(["dataset.root=${oc.env:X}"])
@example(["seed=[1,{a:2}]", "~seed"])
@example(["train={}"])
def test_any_override_is_accepted_or_gets_a_message(overrides: list[str]) -> None:
    for multirun in (False, True):
        try:
            check_overrides("pretrain", settings_named("pretrain"), overrides, None, multirun)
        except UserError as error:
            assert str(error).strip()


def mistakes(*overrides: str) -> str:
    try:
        check_overrides("pretrain", settings("pretrain"), overrides, None, multirun=True)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "sweep",
    ["train.steps=few,1", "train.steps=1,few", "train.steps=1,few,2", "seed=0,1,2,3,few", "pretext=simclr,few"],
)
def test_a_wrong_value_anywhere_in_a_sweep_is_reported(sweep: str) -> None:
    (line,) = mistakes(sweep).splitlines()
    assert line.startswith(sweep.partition("=")[0])
    assert "few" in line


def test_a_sweep_of_valid_values_is_accepted() -> None:
    assert not mistakes("train.steps=1,2,3", "pretext=simclr,rotation", "seed=range(3)")


def test_wrong_values_in_two_sweeps_of_different_length_are_all_reported() -> None:
    lines = mistakes("seed=0,1,2,last", "train.epochs=5,some,10").splitlines()
    assert len(lines) == 2
    assert {line.partition(":")[0] for line in lines} == {"seed", "train.epochs"}


def test_a_key_is_checked_with_every_choice_of_a_swept_group() -> None:
    """Only SimCLR has a temperature."""
    assert not mistakes("pretext=simclr", "pretext.temperature=0.2")
    for choices in ("simclr,rotation", "rotation,simclr"):
        line = mistakes(f"pretext={choices}", "pretext.temperature=0.2")
        assert line.startswith("pretext.temperature: no such key with pretext=rotation")


def test_a_key_of_another_choice_names_those_that_have_it() -> None:
    others = "dino|moco|simclr|swav"
    assert mistakes("pretext=byol", "pretext.temperature=1") == (
        f"pretext.temperature: no such key; it is a key of pretext={others}"
    )
    assert mistakes("pretext=rotation", "pretext.beta=1").endswith("it is a key of pretext=vae")
    assert mistakes("pretext=simclr", "pretext.temprature=1").endswith("did you mean pretext.temperature?")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("experiment=null", "experiment=null: no such experiment; leave it out for none. Choices: "),
        ("experiment=null,simclr_digits", "experiment=null: no such experiment; leave it out for none. Choices: "),
        ("+pretext=simclr", "+pretext=simclr: the config has a choice of pretext already; remove the +"),
        ("=3", "=3: no such key"),
        ("pretext==simclr", "pretext==simclr: cannot be parsed (extraneous input '='); quote special characters"),
        ("hydra.sweeper.params.seed=1,2", "the config cannot be composed: "),
        ('seed="1"', "seed: must be an integer, found '1'"),
    ],
)
def test_an_override_that_hydra_does_not_understand_is_one_line(override: str, line: str) -> None:
    assert mistakes(override).startswith(line)
    assert len(mistakes(override).splitlines()) == 1


def test_no_experiment_may_be_chosen() -> None:
    assert not mistakes("~experiment")


@pytest.mark.parametrize("root", ["~/photos", "a,b"])
def test_a_key_with_a_mistake_in_its_value_is_not_required_as_well(root: str) -> None:
    with pytest.raises(UserError) as error:
        check_overrides("pretrain", settings("pretrain"), ["dataset=folder", f"dataset.root={root}"], None, False)
    assert str(error.value).startswith(f"dataset.root={root}: ")
    assert "required" not in str(error.value)


def test_keys_and_groups_of_the_user_can_be_added(tmp_path: Path) -> None:
    (tmp_path / "pretext").mkdir()
    (tmp_path / "pretext/own.yaml").write_text("_target_: own.Own\n")
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe/short.yaml").write_text("# @package _global_\ntrain: {steps: 3}\n")
    for sign in ("+", "++"):
        overrides = ["pretext=own", f"{sign}pretext.width=1,2", "+recipe=short"]
        configs = composed_configs("pretrain", overrides, str(tmp_path), True)
        assert [(c.pretext.width, c.train.steps) for c in configs] == [(1, 3), (2, 3)]


def test_a_data_set_without_the_shared_keys_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset/own.yaml").write_text("_target_: own.listed\nroot: images\n")
    with pytest.raises(UserError) as error:
        composed_configs("pretrain", ["dataset=own"], str(tmp_path), False)
    assert str(error.value) == (
        "dataset: its YAML lacks the keys of every data set; begin it with defaults: [_shared, _self_]"
    )


def test_a_choice_of_ones_own_needs_its_folder() -> None:
    Path("conf/backbone").mkdir(parents=True)
    Path("conf/backbone/widenet.yaml").write_text("_target_: widenet.widenet\n")
    assert "no such backbone; for conf/backbone/widenet.yaml add -cd conf. Choices: " in mistakes("backbone=widenet")
    assert "no such backbone; did you mean smallcnn?" in mistakes("backbone=smalcnn")
