from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from sslrun.config.build import build
from sslrun.config.compose import compose_config
from sslrun.training.optimizers import LARS, adam, adamw, lars, parameter_groups, sgd


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lars"])
def test_every_optimizer_lowers_a_loss(name: str) -> None:
    node: Any = OmegaConf.to_container(compose_config("pretrain", [f"optimizer={name}"], None).optimizer)
    net = nn.Linear(4, 1)
    optimizer = build(node, parameter_groups(net, node["weight_decay"], {}), 0.5 if name == "lars" else 0.01)
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(30):
        loss = (net(x) - x.sum(1, keepdim=True)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_lars_against_its_formula() -> None:
    w = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    optimizer = LARS([{"params": [w], "rate": 1.0}], lr=0.1, weight_decay=0.01, momentum=0.9, trust=0.02)
    value, v = w.detach().clone(), torch.zeros(1, 2)
    for _ in range(3):
        w.grad = torch.tensor([[0.6, -0.8]])
        optimizer.step()
        g = torch.tensor([[0.6, -0.8]]) + 0.01 * value
        v = 0.9 * v + 0.02 * value.norm() / g.norm() * g
        value = value - 0.1 * v
    assert torch.allclose(w, value, atol=1e-6)


def test_vectors_do_not_decay_and_prefixes_have_their_own_rate() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    groups = parameter_groups(net, 0.1, {"3.": 5.0})
    assert sum(len(g["params"]) for g in groups) == 6
    for g in groups:
        assert all((p.ndim > 1) == (g["weight_decay"] == 0.1) for p in g["params"])
    assert {g["rate"] for g in groups} == {1.0, 5.0}


RATE, DECAY = 0.1, 0.01


def weights() -> nn.Parameter:
    return nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 4.0]]))


def step(optimizer: torch.optim.Optimizer, w: nn.Parameter, gradient: float) -> torch.Tensor:
    """Return the weights after a step in which all gradients are equal."""
    w.grad = torch.full_like(w, gradient)
    optimizer.step()
    return w.detach().clone()


def groups(w: nn.Parameter, weight_decay: float = DECAY) -> list[dict[str, Any]]:
    return [{"params": [w], "weight_decay": weight_decay}]


def test_adamw_shrinks_weights_without_a_gradient_in_proportion() -> None:
    w, before = weights(), weights().detach()
    optimizer = adamw(groups(w), RATE, weight_decay=DECAY, betas=[0.9, 0.999])
    assert torch.allclose(step(optimizer, w, 0.0), before * (1 - RATE * DECAY))


def test_adam_adds_weight_decay_to_the_gradient() -> None:
    """The first step moves every weight towards zero by the learning rate, regardless of its size."""
    w, before = weights(), weights().detach()
    optimizer = adam(groups(w), RATE, weight_decay=DECAY, betas=[0.9, 0.999])
    assert torch.allclose(step(optimizer, w, 0.0), before - RATE * before.sign(), atol=1e-5)


@pytest.mark.parametrize(("nesterov", "times"), [(False, 1.0), (True, 1.9)])
def test_sgd_adds_weight_decay_to_the_gradient(nesterov: bool, times: float) -> None:
    w, before = weights(), weights().detach()
    optimizer = sgd(groups(w), RATE, weight_decay=DECAY, momentum=0.9, nesterov=nesterov)
    assert torch.allclose(step(optimizer, w, 0.0), before * (1 - RATE * DECAY * times))


def test_lars_moves_a_matrix_by_trust_times_its_norm_and_a_vector_as_sgd() -> None:
    matrix, before = weights(), weights().detach()
    optimizer = lars(groups(matrix), RATE, weight_decay=DECAY, momentum=0.9, trust=0.02)
    assert torch.allclose(step(optimizer, matrix, 0.0), before * (1 - RATE * 0.02))
    vector = nn.Parameter(torch.ones(3))
    optimizer = lars(groups(vector), RATE, weight_decay=DECAY, momentum=0.9, trust=0.02)
    assert torch.allclose(step(optimizer, vector, 1.0), torch.full((3,), 1 - RATE * (1 + DECAY)))


@pytest.mark.parametrize("build", [adam, adamw])
@pytest.mark.parametrize(("beta", "share"), [(0.0, 0.0), (0.9, 0.9 / 1.9)])
def test_the_first_beta_is_the_decay_of_past_gradients(build: Any, beta: float, share: float) -> None:
    w = weights()
    optimizer = build(groups(w, 0.0), RATE, weight_decay=0.0, betas=[beta, 0.5])
    first = step(optimizer, w, 1.0)
    moved = first - step(optimizer, w, 0.0)
    assert torch.allclose(moved, torch.full_like(w, RATE * share / (1 / 3) ** 0.5), atol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_momentum_continues_without_a_gradient(momentum: float) -> None:
    for optimizer_of in (
        lambda p: sgd(groups(p, 0.0), RATE, weight_decay=0.0, momentum=momentum, nesterov=False),
        lambda p: lars(groups(p, 0.0), RATE, weight_decay=0.0, momentum=momentum, trust=0.0),
    ):
        vector = nn.Parameter(torch.ones(3))
        optimizer = optimizer_of(vector)
        first = step(optimizer, vector, 1.0)
        assert torch.allclose(first - step(optimizer, vector, 0.0), torch.full((3,), RATE * momentum))


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lars"])
def test_a_learning_rate_set_later_is_used(name: str) -> None:
    """Schedules set the rate of each group; with a rate of 0 nothing moves."""
    node: Any = OmegaConf.to_container(compose_config("pretrain", [f"optimizer={name}"], None).optimizer)
    net = nn.Linear(4, 1)
    optimizer = build(node, parameter_groups(net, node["weight_decay"], {}), 0.5)
    for rate, moves in ((0.0, False), (0.1, True)):
        before = net.weight.detach().clone()
        net.weight.grad, net.bias.grad = torch.ones_like(net.weight), torch.ones_like(net.bias)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        assert net.weight.equal(before) != moves


def test_lars_moves_a_matrix_of_zeros_or_without_a_gradient_by_sgd() -> None:
    zeros = nn.Parameter(torch.zeros(2, 2))
    assert torch.allclose(step(lars(groups(zeros), RATE, weight_decay=0, momentum=0.9, trust=0.02), zeros, 1.0),
                          torch.full((2, 2), -RATE))  # fmt: skip
    still = weights()
    assert torch.equal(
        step(lars(groups(still, 0.0), RATE, weight_decay=0, momentum=0.9, trust=0.02), still, 0.0), weights()
    )
    skipped = weights()
    lars(groups(skipped), RATE, weight_decay=DECAY, momentum=0.9, trust=0.02).step()  # has no gradient
    assert torch.equal(skipped, weights())


def test_the_defaults_of_groups_do_not_replace_their_own_weight_decay() -> None:
    """Vectors are in groups without decay."""
    for optimizer_of in (
        lambda g: sgd(g, RATE, weight_decay=DECAY, momentum=0.0, nesterov=False),
        lambda g: lars(g, RATE, weight_decay=DECAY, momentum=0.0, trust=0.02),
        lambda g: adamw(g, RATE, weight_decay=DECAY, betas=[0.9, 0.999]),
    ):
        vector = nn.Parameter(torch.ones(3))
        assert torch.equal(step(optimizer_of([{"params": [vector], "weight_decay": 0.0}]), vector, 0.0), torch.ones(3))


def test_the_first_prefix_gives_the_rate_and_frozen_parameters_are_left_out() -> None:
    net = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "ba": nn.Linear(2, 2)})
    net["b"].weight.requires_grad_(False)
    found = parameter_groups(net, 0.1, {"a.": 2.0, "ba.": 3.0, "b": 4.0})
    names = {id(p): name for name, p in net.named_parameters()}
    rates = {names[id(p)]: g["rate"] for g in found for p in g["params"]}
    assert rates == {"a.weight": 2.0, "a.bias": 2.0, "b.bias": 4.0, "ba.weight": 3.0, "ba.bias": 3.0}


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lars"])
def test_weights_that_get_gradients_later_are_updated_as_alone(name: str) -> None:
    """Prototypes are frozen in the first steps, for example."""
    node: Any = OmegaConf.to_container(compose_config("pretrain", [f"optimizer={name}"], None).optimizer)

    def built(*ws: nn.Parameter) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = build(node, [{"params": [*ws], "rate": 1.0, "weight_decay": DECAY}], RATE)
        return optimizer

    early, late, alone = weights(), weights(), weights()
    together, own = built(early, late), built(alone)
    for i in range(6):
        early.grad = torch.ones_like(early)
        late.grad = None if i < 2 else torch.full_like(late, float(i))
        together.step()
        if i >= 2:
            alone.grad = torch.full_like(alone, float(i))
            own.step()
    assert torch.equal(late, alone)
    assert not torch.equal(late, weights())


def test_a_state_of_sgd_without_some_momenta_is_resumed() -> None:
    """Earlier versions saved none for weights without gradients."""
    early, late = weights(), weights()
    optimizer = sgd([{"params": [early, late], "rate": 1.0}], RATE, weight_decay=0.0, momentum=0.9, nesterov=False)
    early.grad = torch.ones_like(early)
    optimizer.step()
    content = optimizer.state_dict()
    del content["state"][1]
    optimizer.load_state_dict(content)
    late.grad = torch.ones_like(late)
    optimizer.step()
    assert torch.equal(late, weights() - RATE)
    assert torch.allclose(early, weights() - RATE * 2.9)
