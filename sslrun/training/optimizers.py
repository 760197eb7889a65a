"""Optimizers: functions `optimizer(parameter_groups, learning_rate, *, keys of its YAML)`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn, optim

from sslrun.config.build import build
from sslrun.config.types import Node, NotNegative, Pair, Share
from sslrun.tasks.task import Task

Groups = list[dict[str, Any]]


def adam(groups: Groups, learning_rate: float, *, weight_decay: NotNegative, betas: Pair) -> optim.Optimizer:
    """Adam (Kingma & Ba 2015)."""
    return optim.Adam(groups, learning_rate, weight_decay=weight_decay, betas=tuple(betas), fused=True)  # type: ignore[arg-type]


def adamw(groups: Groups, learning_rate: float, *, weight_decay: NotNegative, betas: Pair) -> optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019)."""
    return optim.AdamW(groups, learning_rate, weight_decay=weight_decay, betas=tuple(betas), fused=True)  # type: ignore[arg-type]


def sgd(
    groups: Groups, learning_rate: float, *, weight_decay: NotNegative, momentum: Share, nesterov: bool
) -> optim.Optimizer:
    """Stochastic gradient descent with momentum."""
    built = optim.SGD(groups, learning_rate, momentum, weight_decay=weight_decay, nesterov=nesterov, fused=True)
    _complete(built)
    built.register_load_state_dict_post_hook(_complete)
    return built


def _complete(optimizer: optim.Optimizer) -> None:
    """Give each weight a momentum of 0: torch fails where some have one, and others get their first gradient."""
    for group in optimizer.param_groups:
        for p in group["params"] if group["momentum"] else []:
            if optimizer.state[p].get("momentum_buffer") is None:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


def lars(
    groups: Groups, learning_rate: float, *, weight_decay: NotNegative, momentum: Share, trust: NotNegative
) -> optim.Optimizer:
    """LARS (You et al. 2017), for batches of 512 and more."""
    return LARS(groups, learning_rate, weight_decay, momentum, trust)


class LARS(optim.Optimizer):
    """SGD with momentum in which the update of each weight matrix is proportional to its norm.

    v <- momentum v + trust |w| / |g + decay w| (g + decay w);  w <- w - rate v. Vectors (biases, batch norm) are
    updated by plain SGD, as in the SimCLR code.
    """

    def __init__(self, groups: Groups, lr: float, weight_decay: float, momentum: float, trust: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is None:
                    continue
                update = w.grad.add(w, alpha=group["weight_decay"])
                if w.ndim > 1:
                    norm, length = w.norm(), update.norm()
                    nonzero = (norm > 0) & (length > 0)
                    update = update * torch.where(nonzero, group["trust"] * norm / length.clamp(min=1e-12), 1.0)
                v = self.state[w].setdefault("momentum", torch.zeros_like(w))
                v.mul_(group["momentum"]).add_(update)
                w.sub_(v, alpha=group["lr"])


def build_optimizer(node: Node, task: Task, learning_rate: float) -> optim.Optimizer:
    """Build the optimizer of a task's trainable parameters, with the task's multiples of the learning rate."""
    return build(node, parameter_groups(task, node["weight_decay"], task.learning_rates()), learning_rate)


def parameter_groups(model: nn.Module, weight_decay: float, rates: dict[str, float]) -> Groups:
    """Group the trainable parameters by learning rate and weight decay; vectors (biases, batch norm) get no decay.

    Args:
        rates: multiples of the learning rate by prefix of the parameters' names; 1 for all others.
    """
    grouped: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            rate = next((r for prefix, r in rates.items() if name.startswith(prefix)), 1.0)
            grouped.setdefault((rate, p.ndim > 1), []).append(p)
    return [
        {"params": ps, "rate": rate, "weight_decay": weight_decay if matrix else 0.0}
        for (rate, matrix), ps in grouped.items()
    ]
