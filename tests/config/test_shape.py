"""The check of a config against the YAML files, which is never stricter than the signatures."""

import copy
from typing import Any

import pytest
from omegaconf import OmegaConf

from sslrun.base.errors import UserError
from sslrun.config.check import check
from sslrun.config.commands import COMMANDS
from sslrun.config.compose import choices, compose_config
from sslrun.config.nodes import plain
from sslrun.config.overrides import check_shape
from sslrun.stages.table import settings
from tests.helpers import Cli

VALUES: tuple[Any, ...] = (None, False, 3, 0.5, "text", [1], [0.5, 0.5], ["a"], {"a": 1})
GROUPS = ("dataset", "backbone", "optimizer", "device", "pretext")


def leaves(node: dict[str, Any], where: str = "") -> list[str]:
    out: list[str] = []
    for key, value in node.items():
        if key != "_target_":
            out += (
                leaves(value, f"{where}{key}.")
                if isinstance(value, dict) and "_target_" in value
                else [f"{where}{key}"]
            )
    return out


def shape_mistakes(command: str, config: Any) -> str:
    try:
        check_shape(command, config, None)
    except UserError as error:
        return str(error)
    return ""


def configs(command: str) -> list[list[str]]:
    """The defaults, and for one command configs that contain each choice of each group."""
    if command != "pretrain":
        return [[]]
    groups = {g: [c for c in choices(g) if c != "from_checkpoint"] for g in GROUPS}
    rounds = range(max(map(len, groups.values())))
    return [[f"{g}={names[i % len(names)]}" for g, names in groups.items()] for i in rounds]


@pytest.mark.parametrize("command", COMMANDS)
def test_values_that_a_signature_accepts_pass_the_early_check(command: str) -> None:
    signature = settings(command)
    for overrides in configs(command):
        base = compose_config(command, overrides, None)
        OmegaConf.set_struct(base, False)
        keys = leaves(plain(base))
        for value in VALUES:
            config = copy.deepcopy(base)
            for key in keys:
                OmegaConf.update(config, key, value, merge=False)
            early = {line.split(": ")[0] for line in shape_mistakes(command, config).splitlines()}
            late = {line.split(": ")[0] for line in check(config, signature)}
            assert early <= late, f"{overrides} {value!r}: {early - late}"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.batch_size=many", "train.batch_size: must be an integer, found many"),
        ("train.batch_size=1.5", "train.batch_size: must be an integer, found 1.5"),
        ("train.learning_rate=fast", "train.learning_rate: must be a number, found fast"),
        ("train.learning_rate=[0.1]", "train.learning_rate: must be a number, found [0.1]"),
        ("train.learning_rate=true", "train.learning_rate: must be a number, found true"),
        ("pretext.loss=3", "pretext.loss: must be text, found 3"),
        ("dataset.horizontal_flip=1", "dataset.horizontal_flip: must be true or false, found 1"),
        ("optimizer.betas=0.9", "optimizer.betas: must be a list, found 0.9"),
        ("optimizer.betas=[a,b]", "optimizer.betas: must be a list of numbers, found ['a', 'b']"),
        ("backbone.widths=[8.5,16]", "backbone.widths: must be a list of integers, found [8.5, 16]"),
        ("train=5", "train: must be a mapping, found 5"),
        ("train.lr=5", "train.lr: no such key; did you mean train.learning_rate?"),
        ("+train.momentun=5", "train.momentun: no such key"),
    ],
)
def test_a_value_of_another_type_is_one_line(cli: Cli, override: str, words: str) -> None:
    answer = cli("pretrain", "dataset=digits", override)
    assert answer.code == 1
    assert answer.err.startswith(f"sslrun: {words}")
    assert len(answer.lines()) == 1


@pytest.mark.parametrize(
    "override",
    ["train.learning_rate=1", "train.epochs=null", "pretext.augment.blur=0.5", "dataset.classes=[a,b]",
     "device.threads=2", "dataset.mean=[0.5,0.5,0.5]", "pretext.augment.degrees=30", "seed=${train.log_every}"],
)  # fmt: skip
def test_a_value_of_a_matching_type_is_accepted(override: str) -> None:
    assert shape_mistakes("pretrain", compose_config("pretrain", [override], None)) == ""
