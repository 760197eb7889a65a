"""Variational autoencoders."""

import pytest
import torch

from sslrun.tasks.pretext.vae import kl_divergence


def test_the_divergence_is_that_of_torch() -> None:
    mean, log_variance = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    normal = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    prior = torch.distributions.Normal(torch.zeros(4), torch.ones(4))
    expected = torch.distributions.kl_divergence(normal, prior).sum(1).mean()
    assert float(kl_divergence(mean, log_variance)) == pytest.approx(float(expected), rel=1e-5)
