"""Autoencoders."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import IDENTITY, make_task, rng

PLAIN = {"_target_": "sslrun.augment.Augment", **IDENTITY}


@pytest.mark.parametrize("name", ["autoencoder", "vae", "inpainting"])
def test_the_mean_color_has_the_loss_of_the_datas_variance(name: str, pieces: Tensor) -> None:
    task: Any = make_task(name, augment=PLAIN).eval()
    task.decoder.forward = lambda x: torch.zeros(60, 3, 32, 32)
    out = task({"images": pieces}, rng())
    variance = float(((pieces - 0.5) / 0.25).square().mean())
    found = float(out["squared_error"] if name == "vae" else out["loss"])
    assert found == pytest.approx(variance, rel=0.02 if name != "inpainting" else 0.2)


def test_noise_has_its_strength(pieces: Tensor) -> None:
    task: Any = make_task("autoencoder", noise=0.5, drop=0.25)
    gray = torch.full((200, 3, 32, 32), 0.4)
    noisy = task.noisy(gray, rng())
    dropped = (noisy == 0.5).all(1)
    assert float(dropped.float().mean()) == pytest.approx(0.25, abs=0.01)
    kept = (noisy - gray).movedim(1, 3)[~dropped]
    assert float(kept.std()) == pytest.approx(0.5 * 0.25, rel=0.02)
