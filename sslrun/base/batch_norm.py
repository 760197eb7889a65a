"""Batch norm with the statistics of several processes."""

from typing import Any

import torch
from torch import Tensor, nn

from sslrun.base import processes
from sslrun.base.errors import UserError


class Synchronized(nn.Module):
    """Batch norm with the statistics of all processes, before a class of torch's; its own takes no CPU tensors."""

    eps: float
    momentum: float | None
    affine: bool
    weight: Any
    bias: Any
    running_mean: Any
    running_var: Any
    num_batches_tracked: Any

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized x, `N x C` or `N x C x ...`."""
        if not self.training or processes.count() == 1:
            return super().forward(x)
        dims = [d for d in range(x.ndim) if d != 1]
        with torch.autocast(x.device.type, enabled=False):
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            variance, mean = torch.var_mean(wide, dims, correction=0)
            own = torch.cat([mean, variance, mean.new_full((1,), x.numel() / x.shape[1])])
            means, variances, counts = processes.Gather.apply(own[None], [1] * processes.count()).split(
                [len(mean), len(mean), 1], 1
            )
            n = counts.sum()
            parts = counts / n
            mean = (parts * means).sum(0)
            variance = (parts * (variances + (means - mean).square())).sum(0)
            scale = (variance + self.eps).rsqrt()
            scale, shift = (scale * self.weight, self.bias) if self.affine else (scale, torch.zeros_like(scale))
            shape = (-1, *[1] * (x.ndim - 2))
            out = torch.addcmul((shift - mean * scale).view(shape), wide, scale.view(shape)).to(x.dtype)
        if self.running_mean is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                factor = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, factor)
                self.running_var.lerp_(variance * n / (n - 1).clamp(min=1), factor)
        return out


class _Synchronized1d(Synchronized, nn.BatchNorm1d):
    pass


class _Synchronized2d(Synchronized, nn.BatchNorm2d):
    pass


class _Synchronized3d(Synchronized, nn.BatchNorm3d):
    pass


KINDS = {nn.BatchNorm1d: _Synchronized1d, nn.BatchNorm2d: _Synchronized2d, nn.BatchNorm3d: _Synchronized3d}


def synchronize(module: nn.Module) -> None:
    """Make all batch norms of a module those of all processes; the state dict does not change.

    Raises:
        UserError: a batch norm is not one of torch's.
    """
    if processes.count() == 1:
        return
    for norm in module.modules():
        known = (*KINDS, *KINDS.values())
        if getattr(norm, "running_mean", None) is not None and type(norm) not in known:
            raise UserError(
                f"the batch norm of this network ({type(norm).__name__}) cannot have the statistics of several "
                "processes: train it in one, or take smallcnn, resnet18, mobilenetv2 or another network with "
                "torch.nn.BatchNorm2d"
            )
        norm.__class__ = KINDS.get(type(norm), type(norm))  # type: ignore[arg-type]
