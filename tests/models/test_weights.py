"""Matching and mismatched state dicts, and published weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sslrun.base.errors import UserError
from sslrun.models.weights import encoder_of as encoder_of_checkpoint
from sslrun.models.weights import (
    external_weights,
    load_state,
    strip_prefix,
)
from sslrun.run import checkpoint
from sslrun.run.find import LAST
from tests.helpers import DIGITS, Cli, encoder_of, only_run


def test_case_20_mismatched_keys_are_listed() -> None:
    net = nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"1 missing \(bias\); 1 unexpected \(other\)"):
        load_state(net, {"weight": torch.zeros(2, 2), "other": torch.zeros(1)}, "x.pt")
    with pytest.raises(UserError, match=r"of a different shape \(weight: expected \(2, 2\), found \(3, 2\)\)"):
        load_state(net, {"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, "x.pt")


def test_case_21_another_networks_weights_are_refused_with_the_shapes(finished_run: Path, cli: Cli) -> None:
    weights = strip_prefix(checkpoint.load(only_run() / LAST)["model"], "encoder.backbone.")
    torch.save(weights, "bare.pt")
    answer = cli(
        "finetune",
        "mode=finetune",
        "init=bare.pt",
        "backbone=smallcnn",
        *DIGITS,
        "backbone.widths=[8,32]",
        "train.steps=2",
    )
    assert answer.code == 1
    assert "expected (32, 8, 3, 3), found (16, 8, 3, 3)" in answer.err


def test_weights_of_mobilenetv2_from_0_1_0_are_read(tmp_path: Path) -> None:
    net = encoder_of("mobilenetv2", 32)
    for module, prefix in ((net, "backbone."), (net.backbone, "")):
        state = {k: torch.rand_like(v.float()) for k, v in module.state_dict().items()}
        old = {k.replace(f"{prefix}features.", f"{prefix}0."): v for k, v in state.items()}
        assert old.keys() != state.keys()
        load_state(module, old, tmp_path)
        assert all(torch.equal(v, state[k].to(v.dtype)) for k, v in module.state_dict().items())


def test_weights_of_nested_blocks_that_resemble_0_1_0_keep_their_names(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3)))
    load_state(net, {k: v + 1 for k, v in net.state_dict().items()}, tmp_path)


def test_the_weights_are_those_of_the_encoder_that_the_checkpoint_names() -> None:
    """A task with a teacher has an encoder of this name, too: the student."""
    state = {"encoder.w": torch.zeros(1), "teacher.w": torch.ones(1)}
    assert encoder_of_checkpoint({"model": state, "downstream": "teacher"})["w"] == 1
    assert encoder_of_checkpoint({"model": state, "downstream": "encoder"})["w"] == 0
    assert encoder_of_checkpoint({"model": state})["w"] == 0  # as of older versions


def test_weights_in_a_file_are_the_state_dict_itself_or_under_a_key() -> None:
    weights, others = {"w": torch.zeros(1)}, {"v": torch.ones(1)}
    for content in (weights, {"state_dict": weights}, {"model": weights, "epoch": 3}):
        assert external_weights(content, Path("x.pt")) is weights
    assert external_weights({"model": others, "state_dict": weights}, Path("x.pt")) is weights
    wrong: list[dict[str, Any]] = [{}, {"epoch": 3}, {"state_dict": {}}, {"model": [1]}, {**weights, "epoch": 3}]
    for refused in wrong:
        with pytest.raises(UserError, match=r"x\.pt has no weights"):
            external_weights(refused, Path("x.pt"))


def test_at_most_three_keys_are_listed() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"4 missing \(0\.bias, 0\.weight, 1\.bias, \.\.\.\)\. Are they of another"):
        load_state(net, {}, "x.pt")
    with pytest.raises(UserError, match=r"3 missing \(0\.bias, 0\.weight, 1\.bias\)\. Are"):
        load_state(net, {"1.weight": torch.zeros(2, 2)}, "x.pt")


def test_the_encoder_of_a_classifier_is_below_it() -> None:
    state = {"encoder.w": torch.zeros(1), "classifier.encoder.w": torch.ones(1)}
    assert encoder_of_checkpoint({"model": state, "class_names": ["a"]})["w"] == 1
    assert encoder_of_checkpoint({"model": state})["w"] == 0
    assert encoder_of_checkpoint({"model": state, "class_names": ["a"], "downstream": "encoder"})["w"] == 0
