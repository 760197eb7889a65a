"""The encoder: a backbone that normalizes its input, and pooling of its feature maps."""

import itertools
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslrun.base.errors import UserError, described
from sslrun.config.build import build
from sslrun.config.contract import Contract
from sslrun.config.types import Node, Supplied

BackboneNode = Annotated[Node, Supplied("image_size")]
Pooling = Literal["average", "grid"]
GRID_MAPS, GRID = 2, 2  # of pooling=grid: number of feature maps (the last ones), and of cells per side


class Encoder(nn.Module):
    """A backbone that normalizes its input, so that mean and standard deviation are part of the checkpoint.

    Args:
        backbone: a module that returns feature maps and has `channels` (see `sslrun.models.backbones`).
        mean, std: of the three channels, in [0, 1].
        pooling: `average` is the mean over the last feature map. `grid` concatenates the means over 2 x 2 cells of the
            last two maps; it keeps coarse positions, and the earlier map, which often transfers better than the last
            (Gidaris et al. 2018, table 1).
        image_size: in px; it determines the feature dimension of `grid`.

    Attributes:
        channels: number of channels of each feature map.
        pooling: may be changed at any time; the weights do not depend on it.
        memory_format: of the weights; images are converted to it. Set by `Device.put`.

    Raises:
        UserError: the backbone does not return feature maps with these channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        mean: list[float],
        std: list[float],
        pooling: Pooling = "average",
        image_size: int = 32,
    ) -> None:
        super().__init__()
        self.backbone, self.pooling = backbone, pooling
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))
        maps = example_maps(backbone, image_size)
        self.channels = [m.shape[1] for m in maps]
        self._grid_dim = sum(grid_average(m).shape[1] for m in maps[-GRID_MAPS:])
        self.memory_format = torch.contiguous_format

    @property
    def feature_dim(self) -> int:
        """Return the dimension of the features."""
        return self._grid_dim if self.pooling == "grid" else self.channels[-1]

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps, `N x C_i x H_i x W_i`, fine to coarse, of images, `N x 3 x H x W` in [0, 1]."""
        x = (images - self.mean) / self.std
        maps: list[Tensor] = self.backbone(x.contiguous(memory_format=self.memory_format))  # views have any format
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """Return features, `N x feature_dim` in float32, of images, `N x 3 x H x W` in [0, 1]."""
        return pooled(self.maps(images), self.pooling)


def pooled(maps: list[Tensor], pooling: Pooling) -> Tensor:
    """Pool the feature maps of a backbone to features, `N x D`, in float32: bf16 has 8 bits, a mean needs more."""
    return average(maps[-1]) if pooling == "average" else torch.cat([grid_average(m) for m in maps[-GRID_MAPS:]], 1)


def average(features: Tensor) -> Tensor:
    """Average a feature map, `N x C x H x W`, over its positions to `N x C`, in float32."""
    return features.mean((2, 3), dtype=torch.promote_types(features.dtype, torch.float32))


def grid_average(features: Tensor) -> Tensor:
    """Average a feature map, `N x C x H x W`, in 2 x 2 cells to `N x 4C`, in float32; a side of 1 px has one cell.

    On a GPU cell by cell, since the gradient of `adaptive_avg_pool2d` is not deterministic there.
    """
    if not features.is_cuda:
        sides = (min(GRID, features.shape[2]), min(GRID, features.shape[3]))
        return F.adaptive_avg_pool2d(features.float(), sides).flatten(1)
    return _by_cell(features)


def _by_cell(features: Tensor) -> Tensor:
    """Average in cells; those of an odd side overlap by one position."""
    rows, columns = (_cells(side) for side in features.shape[2:])
    cells = [average(features[:, :, row, column]) for row in rows for column in columns]
    return torch.stack(cells, 2).flatten(1)


def _cells(side: int) -> list[slice]:
    n = min(GRID, side)
    return [slice(i * side // n, -(-(i + 1) * side // n)) for i in range(n)]


def example_maps(backbone: nn.Module, image_size: int) -> list[Tensor]:
    """Return the feature maps of two black images; neither the random state nor batch norm statistics change.

    Raises:
        UserError: the backbone does not fulfill its contract.
    """
    channels: Any = getattr(backbone, "channels", None)
    if not (isinstance(channels, list | tuple) and channels and all(isinstance(c, int) for c in channels)):
        raise UserError("a backbone must have `channels`, a list with the number of channels of each map")
    channels = list(channels)
    was_training = {module: module.training for module in backbone.modules()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            maps: Any = backbone.eval()(torch.zeros(2, 3, image_size, image_size))
    except Exception as error:  # the backbone may be the user's and raise anything
        raise UserError(f"a backbone must take images of {image_size} px, N x 3 x S x S: {described(error)}") from error
    finally:
        for module, training in was_training.items():
            module.training = training
    is_list = isinstance(maps, list | tuple) and all(isinstance(m, Tensor) and m.ndim == 4 for m in maps)
    shapes = [list(m.shape) for m in maps] if is_list else _kind(maps)
    if not is_list or [m.shape[1] for m in maps] != channels or any(len(m) != 2 for m in maps):
        raise UserError(
            f"a backbone must return a list of maps, N x C x H x W, with C={channels} as its `channels` say; "
            f"for 2 images it returned {shapes}"
        )
    if any(a.shape[2] < b.shape[2] or a.shape[3] < b.shape[3] for a, b in itertools.pairwise(maps)):
        raise UserError(f"a backbone must return its maps fine to coarse; for 2 images it returned {shapes}")
    return list(maps)


def _kind(value: Any) -> str:
    """Return the type of a value, or the shape of a tensor, also of the items of a list, for a message."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_kind, value))}]"
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def build_encoder(
    node: Node, image_size: int, mean: list[float], std: list[float], pooling: Pooling = "average"
) -> Encoder:
    """Build the encoder for a `backbone` config node, with random weights.

    Raises:
        UserError: the `_target_` does not return a valid backbone.
    """
    contract = Contract("backbone", node["_target_"])
    with contract.running("building it"):
        backbone = build(node, image_size)
    if not isinstance(backbone, nn.Module):
        raise contract.broken(f"a backbone must be a torch.nn.Module, found {type(backbone).__name__}")
    try:
        return Encoder(backbone, mean, std, pooling, image_size)
    except UserError as error:
        raise contract.broken(str(error)) from error
