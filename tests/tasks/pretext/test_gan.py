"""GANs."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sslrun.tasks.pretext.gan import discriminator_loss
from tests.helpers import IDENTITY, make_task, rng

PLAIN = {"_target_": "sslrun.augment.Augment", **IDENTITY}


def test_the_discriminators_loss() -> None:
    real, fake = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    naive = [-math.log(1 / (1 + math.exp(-x))) for x in real] + [-math.log(1 - 1 / (1 + math.exp(-x))) for x in fake]
    assert float(discriminator_loss(real, fake)) == pytest.approx(sum(naive) / 9, rel=1e-5)
    assert float(discriminator_loss(torch.zeros(3), torch.zeros(3))) == pytest.approx(2 * math.log(2))


def test_the_generator_gets_the_gradient_of_its_own_loss(pieces: Tensor) -> None:
    """Reversed and scaled, it is that of softplus(-D(G(z))), as two optimizers would have it."""
    task: Any = make_task("gan", augment=PLAIN).eval()
    task.head.bias.data.fill_(-1.5)  # a discriminator that is ahead, whose factor is not 1
    task({"images": pieces[:8]}, rng())["loss"].backward()
    found = [p.grad.clone() for p in task.generator.parameters()]
    discriminator = [p.grad.clone() for p in task.encoder.parameters()]
    task.zero_grad()
    fake = task.generated(8, rng(), pieces.device)
    logits = task.head(task.encoder(fake)).squeeze(1)
    torch.nn.functional.softplus(-logits).mean().backward()
    for a, b in zip(found, [p.grad for p in task.generator.parameters()], strict=True):
        assert torch.allclose(a, b, atol=1e-6, rtol=1e-3)
    task.zero_grad()
    real = torch.nn.functional.softplus(-task.head(task.encoder(pieces[:8])))
    fake = torch.nn.functional.softplus(task.head(task.encoder(fake.detach())))
    (real.mean() + fake.mean()).backward()
    for a, b in zip(discriminator, [p.grad for p in task.encoder.parameters()], strict=True):
        assert torch.allclose(a, b, atol=1e-6, rtol=1e-3)


def test_real_and_generated_images_are_augmented_batches_of_their_own(pieces: Tensor) -> None:
    task: Any = make_task("gan").train()
    seen: list[Tensor] = []
    task.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    task({"images": pieces[:8]}, rng())
    assert [len(x) for x in seen] == [8, 8]
    given = rng()
    fake = task.generated(8, given, pieces.device).detach()
    assert torch.allclose(seen[0], task.augment(pieces[:8], given), atol=1e-5)
    assert torch.allclose(seen[1], task.augment(fake, given), atol=1e-5)
