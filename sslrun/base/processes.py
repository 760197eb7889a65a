"""Several processes that train one model, as torchrun starts them: their shares of a batch, and collectives.

Every process holds the whole model, and computes with its share of each batch. A task's loss is a mean over this share,
or the loss of the whole batch (after `gathered`); weighted by the shares and summed over the processes, both are the
loss of the whole batch, and so are the gradients: those of `gathered` and `total` are sums over the processes. Hence N
processes train the same model as one, up to rounding. In a single process everything here does nothing.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_batch = 0  # images of the global batch of the current step


def count() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if count() > 1 else 0


def sizes(n: int) -> list[int]:
    """Return how many of n images each process takes; they differ by 1 at most."""
    return [n * (r + 1) // count() - n * r // count() for r in range(count())]


def share(n: int) -> slice:
    """Return this process's images of n."""
    return slice(n * rank() // count(), n * (rank() + 1) // count())


def begin(batch: int) -> None:
    """Begin a step with this number of images in the global batch, which `gathered` has to know."""
    global _batch
    _batch = batch


def weight() -> float:
    """Return this process's share of the global batch, as a fraction."""
    return sizes(_batch)[rank()] / _batch if count() > 1 else 1.0


def gathered(x: Tensor, views: int = 1) -> Tensor:
    """Return the rows of all processes, in the order of the global batch; gradients flow to all of them.

    Args:
        x: `views * n x ...` for this process's n images, view by view.

    Returns:
        `views * N x ...` for the N images of the global batch, view by view.
    """
    if count() == 1:
        return x
    by_image = x.unflatten(0, (views, -1)).transpose(0, 1).contiguous()
    every: Tensor = _Gather.apply(by_image, sizes(_batch))
    return every.transpose(0, 1).flatten(0, 1)


def total(x: Tensor) -> Tensor:
    """Return the sum over all processes; gradients flow to all of them."""
    if count() == 1:
        return x
    out: Tensor = _Total.apply(x)
    return out


def mean_of_share(x: Tensor) -> Tensor:
    """Return this process's part of a sum over the batch if all parts were in proportion to the shares.

    It is the denominator of a mean whose number of terms differs from image to image.
    """
    return total(x) * weight() if count() > 1 else x


def sum_gradients(module: nn.Module) -> None:
    """Replace all gradients by their sums over the processes, in one message."""
    if count() == 1:
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    if not gradients:
        return
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for g, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        g.copy_(part.view_as(g))


class _Gather(torch.autograd.Function):
    """Concatenate the rows of all processes; the gradient of a row is the sum over the processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Sequence[int]) -> Tensor:
        before = sum(rows[: rank()])
        ctx.rows = slice(before, before + rows[rank()])
        most = max(rows)
        padded = torch.cat([x, x.new_zeros(most - len(x), *x.shape[1:])]) if len(x) < most else x.contiguous()
        every = [torch.empty_like(padded) for _ in rows]
        dist.all_gather(every, padded)
        return torch.cat([part[:n] for part, n in zip(every, rows, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient[ctx.rows], None


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient


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
        if not self.training and self.running_mean is not None:
            return super().forward(x)
        dims = [d for d in range(x.ndim) if d != 1]
        with torch.autocast(x.device.type, enabled=False):
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            variance, mean = torch.var_mean(wide, dims, correction=0)
            own = torch.cat([mean, variance, mean.new_full((1,), x.numel() / x.shape[1])])
            means, variances, counts = _Gather.apply(own[None], [1] * count()).split([len(mean), len(mean), 1], 1)
            n = counts.sum()
            parts = counts / n
            mean = (parts * means).sum(0)
            variance = (parts * (variances + (means - mean).square())).sum(0)
            scale = (variance + self.eps).rsqrt()
            scale, shift = (scale * self.weight, self.bias) if self.affine else (scale, torch.zeros_like(scale))
            shape = (-1, *[1] * (x.ndim - 2))
            out = torch.addcmul((shift - mean * scale).view(shape), wide, scale.view(shape)).to(x.dtype)
        if self.training and self.running_mean is not None and self.running_var is not None:
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
    """Make all batch norms of a module those of all processes; the state dict does not change."""
    if count() == 1:
        return
    for norm in module.modules():
        norm.__class__ = KINDS.get(type(norm), type(norm))  # type: ignore[arg-type]
