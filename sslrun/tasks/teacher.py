"""Teachers that are moving averages of the trained network."""

import copy
import math

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sslrun.device import in_float32


class Teacher(nn.Module):
    """Copies of modules whose weights follow them as an exponential moving average; they get no gradients.

    Batch norm statistics are the teacher's own.

    Args:
        modules: an encoder, then its heads, by name; the copy is the attribute of that name.
    """

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, copy.deepcopy(module).requires_grad_(False))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return the output of the last head, in float32."""
        encoder, *heads = self.children()
        x: Tensor = encoder(images)
        for head in heads:
            x = in_float32(head, x)
        return x

    @torch.no_grad()
    def follow(self, student: nn.Module, decay: float) -> None:
        """Update each weight to `decay * weight + (1 - decay) * that of the student's module of the same name`."""
        for name, module in self.named_children():
            own, others = [*module.parameters()], [*student.get_submodule(name).parameters()]
            get_ema_multi_avg_fn(decay)(own, others, torch.tensor(1))


def decay_at(step: int, total: int, base: float) -> float:
    """Return the decay of a step, from `base` to 1 by a cosine (Grill et al. 2020, section 3.3)."""
    return 1 - (1 - base) * (math.cos(math.pi * step / total) + 1) / 2
