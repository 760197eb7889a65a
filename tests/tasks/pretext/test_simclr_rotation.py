"""SimCLR with rotation prediction."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sslrun.base.errors import UserError
from sslrun.config.compose import compose_config
from sslrun.config.nodes import plain
from tests.helpers import batch_of, make_task, rng


@torch.no_grad()
@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_the_loss_is_the_weighted_sum(weight: float, pieces: Tensor) -> None:
    out = make_task("simclr_rotation", rotation_weight=weight)(batch_of(pieces), rng())
    expected = float(out["simclr_loss"]) + weight * float(out["rotation_loss"])
    assert float(out["loss"]) == pytest.approx(expected, rel=1e-5)


def test_both_parts_have_the_same_encoder() -> None:
    task: Any = make_task("simclr_rotation")
    assert task.encoder is task.simclr.encoder is task.rotation.encoder


def test_a_part_whose_hooks_would_not_be_called_is_refused() -> None:
    moco = plain(compose_config("pretrain", ["pretext=moco"], None))["pretext"]
    with pytest.raises(UserError, match="MoCo cannot be a part: its set_sizes would not be called"):
        make_task("simclr_rotation", simclr=moco)
