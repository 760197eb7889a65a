"""Variational autoencoders."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sslrun.tasks.pretext.vae import kl_divergence
from tests.helpers import batch_of, make_task, rng


def test_the_divergence_is_that_of_torch() -> None:
    mean, log_variance = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    normal = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    prior = torch.distributions.Normal(torch.zeros(4), torch.ones(4))
    expected = torch.distributions.kl_divergence(normal, prior).sum(1).mean()
    assert float(kl_divergence(mean, log_variance)) == pytest.approx(float(expected), rel=1e-5)


@torch.no_grad()
def test_the_loss_has_the_weight_and_the_decoder_a_sample(pieces: Tensor) -> None:
    for beta in (0.0, 4.0):
        out = {k: float(v) for k, v in make_task("vae", beta=beta).eval()(batch_of(pieces), rng()).items()}
        expected = 0.5 * out["squared_error"] + beta * out["kl_divergence"] / (3 * 32 * 32)
        assert out["loss"] == pytest.approx(expected, rel=1e-5)
    seen: list[Tensor] = []
    task: Any = make_task("vae").eval()
    task.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    gray = torch.full((500, 3, 32, 32), 0.5)
    task(batch_of(gray), rng())
    mean, log_variance = task.posterior(task.encoder(gray)).chunk(2, 1)
    assert torch.allclose(seen[0].mean(0), mean[0], atol=0.25)
    assert torch.allclose(seen[0].std(0), (0.5 * log_variance[0]).exp(), rtol=0.2)
