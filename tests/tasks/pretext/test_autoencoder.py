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


@torch.no_grad()
def test_the_encoder_sees_the_noise_and_the_error_is_to_the_clean_view(pieces: Tensor) -> None:
    task: Any = make_task("autoencoder", augment=PLAIN).eval()
    seen: list[Tensor] = []
    task.encoder.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    task.decoder.forward = lambda x: (pieces - 0.5) / 0.25
    assert float(task({"images": pieces}, rng())["loss"]) == pytest.approx(0, abs=1e-6)
    assert (seen[0] - (pieces - 0.5) / 0.25).abs().mean() > 0.3
