"""Masks of images, and convolutional networks that see only what is not masked."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslrun.augment import Rng
from sslrun.base import processes
from sslrun.base.batch_norm import Synchronized

MaskRatio = Annotated[float, Field(gt=0, lt=1)]


def random_masks(n: int, grid: int, ratio: float, rng: Rng) -> Tensor:
    """Return which cells of a `grid x grid` raster are visible, `N x 1 x grid x grid`, floats: 1 visible, 0 masked.

    The same number of cells is masked in each image: the ratio, rounded, but at least one and not all.
    """
    cells = grid**2
    masked = min(cells - 1, max(1, round(ratio * cells)))
    rank = rng.rand(n, cells).argsort(1).argsort(1)
    return (rank >= masked).float().view(n, 1, grid, grid)


def resized(visible: Tensor, height: int, width: int) -> Tensor:
    """Return a mask at the size of a feature map; a position is visible if any of its cells is."""
    rows, columns = visible.shape[2:]
    if height % rows == 0 and width % columns == 0:
        return F.interpolate(visible, (height, width))
    fine = F.interpolate(visible, (height * rows, width * columns))  # whole steps of both rasters
    return F.adaptive_max_pool2d(fine, (height, width))


def is_plain(norm: nn.BatchNorm2d) -> bool:
    """Return whether `visible_only` can replace a batch norm: it does nothing else, and has weights and statistics."""
    plain = type(norm).forward in (nn.BatchNorm2d.forward, Synchronized.forward)
    return plain and norm.affine and norm.track_running_stats and norm.momentum is not None


def refuse_other_norms(network: nn.Module) -> None:
    """Raise ValueError if a network has batch norms whose statistics would be those of masked positions, too."""
    others = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d) and not is_plain(m)]
    if others:
        raise ValueError(
            f"the batch norm of this network ({type(others[0]).__name__}) cannot leave masked areas out: take "
            "smallcnn, resnet18, mobilenetv2 or another network with torch.nn.BatchNorm2d that has weights, running "
            "statistics and a momentum"
        )


@contextmanager
def visible_only(network: nn.Module, visible: Tensor) -> Iterator[None]:
    """Make a convolutional network process only visible areas (sparse convolution; SparK, Tian et al. 2023).

    After each convolution and pooling, masked positions are set to 0; batch norm takes its statistics over visible
    positions, see `refuse_other_norms`. Other layers see the zeros.

    Args:
        network: with layers of torch.nn.
        visible: `N x 1 x h x w`, 1 or 0, for inputs of N images whose masked areas are 0.
    """
    masks: dict[tuple[int, int], Tensor] = {}

    def mask(x: Tensor) -> Tensor:
        size = (x.shape[2], x.shape[3])
        if size not in masks:
            masks[size] = resized(visible, *size)
        return masks[size].to(x.dtype)

    def masked(forward: nn.Module, x: Tensor) -> Tensor:
        out: Tensor = type(forward).forward(forward, x)
        return out * mask(out)

    changed: list[nn.Module] = []
    try:
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
                module.forward = partial(masked, module)  # type: ignore[method-assign]
            elif isinstance(module, nn.BatchNorm2d) and is_plain(module):
                module.forward = partial(_masked_batch_norm, module, mask)  # type: ignore[method-assign]
            else:
                continue
            changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward


def _masked_batch_norm(norm: nn.BatchNorm2d, mask, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    visible = mask(x)
    if not norm.training:
        return nn.BatchNorm2d.forward(norm, x) * visible
    with torch.autocast(x.device.type, enabled=False):
        count = processes.total(visible.float().sum())
        wide = x.float()
        mean = processes.total((wide * visible).sum((0, 2, 3))) / count
        variance = processes.total(((wide - mean[:, None, None]).square() * visible).sum((0, 2, 3))) / count
        scale = norm.weight * (variance + norm.eps).rsqrt()
        out = torch.addcmul((norm.bias - mean * scale)[:, None, None], wide, scale[:, None, None]).to(x.dtype) * visible
    with torch.no_grad():
        norm.running_mean.lerp_(mean, norm.momentum)  # type: ignore[union-attr, arg-type]
        norm.running_var.lerp_(variance * count / (count - 1).clamp(min=1), norm.momentum)  # type: ignore[union-attr, arg-type]
        norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]
    return out
