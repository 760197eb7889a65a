"""The encoder: a backbone that normalises its images itself, and what is read from it."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslrun.base.errors import UserError
from sslrun.config.build import build
from sslrun.config.types import Node

Readout = Literal["average", "grid"]
STAGES, GRID = 2, 2  # of readout=grid: so many stages, the last ones, and so many fields a side


class Encoder(nn.Module):
    """A backbone that normalises its pictures itself, so that a checkpoint cannot be used with other numbers.

    Args:
        backbone: a module as above.
        mean, std: of the three channels, in [0, 1].
        readout: `average`, what the backbone returns, or `grid`, the maps of its last two stages, each averaged in
            2 x 2 fields: they tell where something is, too, and the end of a network knows its own task best, the
            middle other ones (Gidaris et al. 2018, table 1). Of a backbone without a list `stages` it is `average`.
        image_size: px, by which `grid` finds its `feature_dim`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        mean: list[float],
        std: list[float],
        readout: Readout = "average",
        image_size: int = 32,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self._maps: list[Tensor] = []
        self._hooks: list[Any] = []
        self._image_size = image_size
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))
        self.read(readout)

    def read(self, readout: Readout) -> None:
        """Give features of this readout from now on; the weights stay as they are."""
        for hook in self._hooks:
            hook.remove()
        stages: Any = getattr(self.backbone, "stages", None)
        self.readout = readout if isinstance(stages, list) else "average"
        self.feature_dim: int = self.backbone.feature_dim  # type: ignore[assignment]
        self._hooks = [s.register_forward_hook(self._keep) for s in stages[-STAGES:]] if self.readout == "grid" else []
        if self._hooks:
            training = self.training
            with torch.no_grad():
                one = torch.zeros(1, 3, self._image_size, self._image_size, device=self.mean.device)
                self.feature_dim = self.eval()(one).shape[1]
            self.train(training)

    def _keep(self, stage: nn.Module, given: Any, maps: Tensor) -> None:
        self._maps.append(maps)

    def forward(self, images: Tensor) -> Tensor:
        """`N x 3 x H x W` in [0, 1] -> features, `N x feature_dim`."""
        x = (images - self.mean) / self.std
        weights = next((p for p in self.backbone.parameters() if p.ndim == 4 and p.shape[2:] != (1, 1)), x)
        last = weights.is_contiguous(memory_format=torch.channels_last)  # views may come in any format
        self._maps.clear()
        out = self.backbone(x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format))
        if self.readout == "average":
            return out
        fields = [F.adaptive_avg_pool2d(m, (min(GRID, m.shape[2]), min(GRID, m.shape[3]))) for m in self._maps]
        self._maps.clear()
        return torch.cat([f.flatten(1) for f in fields], 1)


def build_encoder(
    node: Node, image_size: int, mean: list[float], std: list[float], readout: Readout = "average"
) -> Encoder:
    """Build the network that a `backbone` node describes, with random weights."""
    backbone = build(node, image_size)
    if not isinstance(getattr(backbone, "feature_dim", None), int):
        raise UserError(f"{node['_target_']} must return a module with a whole number `feature_dim`")
    return Encoder(backbone, mean, std, readout, image_size)
