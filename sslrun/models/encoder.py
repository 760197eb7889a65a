"""The encoder: a backbone that normalises its images itself, and what is read from it."""

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
GRID_MAPS, GRID = 2, 2  # of pooling=grid: so many maps, the last ones, and so many fields a side


class Encoder(nn.Module):
    """A backbone that normalises its pictures itself, so that a checkpoint cannot be used with other numbers.

    Args:
        backbone: a module that returns its maps and has `channels` (see `sslrun.models.backbones`).
        mean, std: of the three channels, in [0, 1].
        pooling: `average`, the mean over the last map, or `grid`, the last two maps, each averaged in 2 x 2 fields:
            they tell where something is, too, and the end of a network knows its own task best, the middle other ones
            (Gidaris et al. 2018, table 1).
        image_size: px, of which the maps are that `grid` takes its fields from.

    Attributes:
        channels: of each map.
        pooling: may be set to the other one at any time; the weights stay as they are.
        memory_format: of the network's weights, to which its images are brought; set by the device that it is put on.

    Raises:
        UserError: the backbone does not return maps with these channels.
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
        maps = _example_maps(backbone, image_size)
        self.channels = [m.shape[1] for m in maps]
        self._grid_dim = sum(fields(m).shape[1] for m in maps[-GRID_MAPS:])
        self.memory_format = torch.contiguous_format

    @property
    def feature_dim(self) -> int:
        """Return how many numbers the features of an image are."""
        return self._grid_dim if self.pooling == "grid" else self.channels[-1]

    def maps(self, images: Tensor) -> list[Tensor]:
        """`N x 3 x H x W` in [0, 1] -> the backbone's maps, `N x C_i x H_i x W_i`, fine to coarse."""
        x = (images - self.mean) / self.std
        maps: list[Tensor] = self.backbone(x.contiguous(memory_format=self.memory_format))  # views come in any format
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """`N x 3 x H x W` in [0, 1] -> features, `N x feature_dim`."""
        return pooled(self.maps(images), self.pooling)


def pooled(maps: list[Tensor], pooling: Pooling) -> Tensor:
    """Maps of a backbone -> features, `N x D`."""
    return average(maps[-1]) if pooling == "average" else torch.cat([fields(m) for m in maps[-GRID_MAPS:]], 1)


def average(features: Tensor) -> Tensor:
    """`N x C x H x W` -> the mean over the map, `N x C`."""
    return F.adaptive_avg_pool2d(features, 1).flatten(1)


def fields(features: Tensor) -> Tensor:
    """`N x C x H x W` -> the means over 2 x 2 fields of the map, `N x 4C`; a side of 1 px has one field."""
    sides = (min(GRID, features.shape[2]), min(GRID, features.shape[3]))
    return F.adaptive_avg_pool2d(features, sides).flatten(1)


def _example_maps(backbone: nn.Module, image_size: int) -> list[Tensor]:
    """Return the maps of two black images; neither random state nor batch norm's statistics change.

    Raises:
        UserError: they are not what a backbone has to return.
    """
    channels: Any = getattr(backbone, "channels", None)
    if not (isinstance(channels, list) and channels and all(isinstance(c, int) for c in channels)):
        raise UserError("a backbone must have `channels`, a list with a whole number for each map that it returns")
    was_training = {module: module.training for module in backbone.modules()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            maps: Any = backbone.eval()(torch.zeros(2, 3, image_size, image_size))
    except Exception as error:  # of any kind: it is the backbone's
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
    """Return the types of a value that should be a list of tensors, and the shapes of tensors."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_kind, value))}]"
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def build_encoder(
    node: Node, image_size: int, mean: list[float], std: list[float], pooling: Pooling = "average"
) -> Encoder:
    """Build the network that a `backbone` node describes, with random weights.

    Raises:
        UserError: what it names is no backbone.
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
