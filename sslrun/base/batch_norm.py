"""Batch norm with the statistics of several processes."""

from typing import Any

import torch
import torch.nn.functional as F
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
        out, mean, variance, n = _Normalized.apply(x, self.weight, self.bias, self.eps)
        if self.running_mean is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                factor = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, factor)
                self.running_var.lerp_(variance * n / (n - 1).clamp(min=1), factor)
        return out


class _Normalized(torch.autograd.Function):
    """Batch norm by torch's own kernels: those of one process, with statistics and sums of all between them.

    Operations on single elements, in float32, take eleven times as long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any, bias: Any, eps: float) -> tuple[Tensor, ...]:
        zero = x.new_zeros(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))  # so that statistics are, too
        mean, variance = torch.batch_norm_update_stats(x, zero, zero.clone(), 0.0)
        own = torch.cat([mean, variance, mean.new_full((1,), x.numel() / x.shape[1])])
        means, variances, counts = processes.Gather.apply(own[None], [1] * processes.count()).split(
            [len(mean), len(mean), 1], 1
        )
        n = counts.sum()
        mean = (counts * means).sum(0) / n
        variance = (counts * (variances + (means - mean).square())).sum(0) / n
        ctx.save_for_backward(x, weight, mean, variance, n)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, n)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps), mean, variance, n

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        x, weight, mean, variance, n = ctx.saved_tensors
        inverse = (variance + ctx.eps).rsqrt()
        if x.is_cuda:
            return _backward_on_gpu(gradients[0], x, weight, mean, inverse, n)
        fixed, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradients[0], x, torch.ones_like(mean) if weight is None else weight, mean, variance, mean, inverse, False,
            ctx.eps, [True, True, True],
        )  # fmt: skip
        sums = processes.Total.apply(torch.stack([of_weight, of_bias]).detach()) / n  # of all processes
        scale = inverse * (1 if weight is None else weight)
        # What the statistics depend on: -scale (mean gradient + normalized x * mean of gradient * normalized x)
        fixed += F.batch_norm(x, mean, variance, -scale * sums[0], -scale * sums[1], False, 0.0, ctx.eps)
        return fixed, None if weight is None else of_weight, None if weight is None else of_bias, None


def _backward_on_gpu(
    gradient: Tensor, x: Tensor, weight: Any, mean: Tensor, inverse: Tensor, n: Tensor
) -> tuple[Any, ...]:
    """Return the gradients by the kernels of torch's `SyncBatchNorm`, which exist on GPUs alone.

    Args:
        inverse: 1 / standard deviation.
        n: number of values of a channel in all processes.
    """
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    gradient = gradient.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    affine = weight is not None
    of_sum, of_product, of_weight, of_bias = torch.batch_norm_backward_reduce(
        gradient, x, mean, inverse, weight, True, affine, affine
    )
    of_sum, of_product = processes.Total.apply(torch.cat([of_sum, of_product]).detach()).chunk(2)
    counts = n.to(torch.int32)[None]
    of_x = torch.batch_norm_backward_elemt(gradient, x, mean, inverse, weight, of_sum, of_product, counts)
    return of_x, of_weight, of_bias, None


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
