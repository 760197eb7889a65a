"""Inpainting."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import IDENTITY, make_task, rng

PLAIN = {"_target_": "sslrun.augment.Augment", **IDENTITY}


def test_the_hidden_square_is_hidden_and_alone_counts(pieces: Tensor) -> None:
    task: Any = make_task("inpainting", mask_ratio=0.25, augment=PLAIN).eval()
    numbers = rng()
    task.augment(pieces, numbers)
    mask = task.mask(pieces, numbers)
    assert (mask.flatten(1).sum(1) == 16 * 16).all()
    assert len({tuple(m.flatten().nonzero()[0].tolist()) for m in mask}) > 10
    view = task.views(pieces, rng())["hidden"]
    assert torch.equal(view == 0.5, (mask | (pieces == 0.5)).expand_as(view))
    seen: list[Tensor] = []
    task.encoder.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    target = (pieces - 0.5) / 0.25
    task.decoder.forward = lambda x: torch.where(mask, target + 3, 77.0)
    assert float(task({"images": pieces}, rng())["loss"]) == pytest.approx(9, rel=1e-4)
    assert (seen[0][mask.expand_as(seen[0])] == 0).all()
