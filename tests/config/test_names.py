"""The nearest valid name, and names in other tools."""

from itertools import chain

import pytest

from sslrun.config.commands import COMMANDS
from sslrun.config.compose import choices, compose_config, groups
from sslrun.config.names import ALIASES, ELSEWHERE, WITHOUT, key_hint, nearest
from sslrun.config.nodes import flattened, plain
from tests.helpers import Cli

KEYS = {"seed", "dataset", "dataset.root", "dataset.image_size", "optimizer", "optimizer.weight_decay", "backbone"} | {
    "train", "train.learning_rate", "train.batch_size", "train.epochs", "device", "device.precision", "pretext", "init",
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "here"),
    [
        ("optimizer.lr", "train.learning_rate"), ("lr", "train.learning_rate"), ("train.lr", "train.learning_rate"),
        ("bs", "train.batch_size"), ("batch_size", "train.batch_size"), ("epochs", "train.epochs"),
        ("num_epochs", "train.epochs"), ("wd", "optimizer.weight_decay"), ("weight_decay", "optimizer.weight_decay"),
        ("train.weight_decay", "optimizer.weight_decay"), ("gpus", "device=cuda"), ("arch", "backbone"),
        ("model", "backbone"), ("data", "dataset.root"), ("data_dir", "dataset.root"),
        ("img_size", "dataset.image_size"), ("dataset.image-size", "dataset.image_size"), ("SEED", "seed"),
        ("amp", "device.precision"), ("random_state", "seed"), ("checkpoint", "init"), ("method", "pretext"),
        ("train.learning_rat", "train.learning_rate"), ("sed", "seed"),
    ],
)  # fmt: skip
def test_a_key_of_another_tool_suggests_ours(key: str, here: str) -> None:
    assert key_hint(key, KEYS) == f"; did you mean {here}?"


def test_needless_keys_get_a_reason() -> None:
    assert "decoded once" in key_hint("num_workers", KEYS)
    assert "decoded once" in key_hint("dataset.num_workers", KEYS)
    assert key_hint("zzz", KEYS) == ""


def test_results_are_redirected_where_a_command_prints_them() -> None:
    assert key_hint("out", {"format", "images"}, "x.csv") == "; results are printed to standard output; append > x.csv"
    assert key_hint("output_file", {"format", "out"}) == "; did you mean out?"


@pytest.mark.parametrize(
    ("name", "names", "here"),
    [
        ("flatt", ["house", "flat", "garden"], "flat"),
        ("FLAT", ["house", "flat"], "flat"),
        ("simcrl", ["jigsaw", "rotation", "simclr"], "simclr"),
        ("gpu", ["auto", "cpu", "cuda", "mps"], "cuda"),
        ("Daisy", ["daisy", "rose"], "daisy"),
        ("daisy", ["Daisy", "Rose"], "Daisy"),
    ],
)
def test_nearest(name: str, names: list[str], here: str) -> None:
    assert nearest(name, names) == f"; did you mean {here}?"


def test_names_of_tasks_in_other_tools_suggest_ours() -> None:
    for other, ours in (("mae", "masked"), ("simmim", "masked"), ("dae", "autoencoder"), ("puzzle", "jigsaw")):
        assert nearest(other, choices("pretext", None)) == f"; did you mean {ours}?"
    assert {*ALIASES.values()} <= {*choices("pretext", None), *choices("device", None)}


def test_no_suggestion_without_a_similar_name() -> None:
    assert nearest("moco", ["jigsaw", "rotation", "simclr"]) == ""
    assert nearest("x", []) == ""


def test_every_suggested_setting_exists() -> None:
    """A key that is renamed must be renamed in the table of other tools' names, too."""
    keys = {"hydra.run.dir", *groups()}
    for command in COMMANDS:
        keys |= set(flattened(plain(compose_config(command, [], None))))
    assert {here.partition("=")[0] for here in ELSEWHERE} <= keys
    others = set(chain.from_iterable(names.split() for names in (*ELSEWHERE.values(), *WITHOUT)))
    assert not {n for n in others if n != n.casefold()}


def test_an_unknown_class_gets_a_suggestion(cli: Cli) -> None:
    answer = cli("pretrain", "dataset=digits", "dataset.classes={flat: ['0'], b: [sevn]}")
    assert "dataset.classes: no class sevn" in answer.err
