"""Backbones: functions that return a module `N x 3 x S x S -> N x feature_dim` with a `feature_dim` attribute.

Its attribute `stages`, if it has one, lists the modules whose outputs are maps, `N x C x H x W`, from fine to coarse.
The first parameter, the image size, comes from the data set; the rest stands in the YAML.
"""

import itertools
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torchvision import models

from sslrun.config import Node, PositiveInt, UserError, build
from sslrun.data.images import Images
from sslrun.device import Device

SMALL_UP_TO = 64  # px: up to here `stem=auto` keeps the resolution in the first layers
Stem = Literal["auto", "small", "imagenet", "imagenet_small"]
Readout = Literal["average", "grid"]
STAGES, GRID = 2, 2  # of readout=grid: so many stages, the last ones, and so many fields a side
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def smallcnn(image_size: int, *, widths: Annotated[list[PositiveInt], Field(min_length=1)]) -> nn.Module:
    """Blocks of conv3x3, batch norm, ReLU and 2 x 2 max-pool, then a global average."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise([3, *widths]):
        layers += [
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.MaxPool2d(2, ceil_mode=True),  # ceil_mode: tiles of 12 or 14 px survive four of them
            nn.ReLU(inplace=True),  # after the pool it gives the same and has a quarter of the work
        ]
    net: Any = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.feature_dim, net.stages = widths[-1], list(net)[3::4]
    return net


def resnet18(image_size: int, *, stem: Stem) -> nn.Module:
    """ResNet-18 (He et al. 2016); the small stem is a 3 x 3 convolution of stride 1 without max-pool.

    `imagenet_small` has the 7 x 7 convolution of the ImageNet weights, at stride 1 and without max-pool.
    """
    net: Any = models.resnet18()
    net.feature_dim, net.fc = net.fc.in_features, nn.Identity()
    net.stages = [net.layer1, net.layer2, net.layer3, net.layer4]
    net.imagenet = models.ResNet18_Weights.IMAGENET1K_V1
    if _small(stem, image_size):
        kernel = 7 if stem == "imagenet_small" else 3
        net.conv1, net.maxpool = nn.Conv2d(3, 64, kernel, padding=kernel // 2, bias=False), nn.Identity()
    return net


def mobilenetv2(image_size: int, *, stem: Stem) -> nn.Module:
    """MobileNetV2 (Sandler et al. 2018); the small stem keeps the resolution in the first convolution, and up to
    32 px in the first bottleneck that halves it, too.
    """
    full: Any = models.mobilenet_v2()
    if _small(stem, image_size):
        full.features[0][0].stride = (1, 1)
        if image_size <= SMALL_UP_TO // 2:
            full.features[2].conv[1][0].stride = (1, 1)
    net: Any = nn.Sequential(full.features, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.feature_dim, net.stages = full.last_channel, [full.features[i] for i in (3, 6, 13, 18)]
    net.imagenet = models.MobileNet_V2_Weights.IMAGENET1K_V1
    return net


def _small(stem: str, image_size: int) -> bool:
    return stem in ("small", "imagenet_small") or (stem == "auto" and image_size <= SMALL_UP_TO)


def for_imagenet(node: Node, image_size: int) -> Node:
    """Return a backbone's node with a stem that ImageNet weights fit."""
    small = "stem" in node and _small(node["stem"], image_size)
    return {**node, "stem": "imagenet_small"} if small else node


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


@torch.no_grad()
def features(encoder: Encoder, images: Tensor | Images, device: Device, batch_size: int = 512) -> Tensor:
    """Return the features of whole pictures, without augmentation.

    Args:
        encoder: on the device; put into evaluation mode.
        images: `N x 3 x S x S`, uint8.

    Returns:
        `N x feature_dim`, float32, on the CPU.
    """
    encoder.eval()
    out = []
    for part in images.split(batch_size):
        with device.autocast(), device.eager():
            out.append(encoder(device.floats(part)).float().cpu())
    return torch.cat(out)


@torch.no_grad()
def stage_features(encoder: Encoder, images: Tensor | Images, device: Device, batch_size: int = 512) -> list[Tensor]:
    """Return the features of every stage of a backbone, the last being what it returns, for whole pictures.

    Args:
        encoder: on the device; put into evaluation mode.
        images: `N x 3 x S x S`, uint8.

    Returns:
        For every stage `N x C`, the mean over its map, float32, on the CPU; without `stages` the last alone.
    """
    encoder.eval()
    backbone: Any = encoder.backbone
    maps: list[Tensor] = []
    stages = backbone.stages[:-1] if isinstance(getattr(backbone, "stages", None), list) else []
    hooks = [s.register_forward_hook(lambda _, __, out: maps.append(out.mean((2, 3)))) for s in stages]
    last = backbone.register_forward_hook(lambda _, __, out: maps.append(out))
    found: list[list[Tensor]] = []
    try:
        for part in images.split(batch_size):
            maps.clear()
            with device.autocast(), device.eager():
                encoder(device.floats(part))
            found.append([m.float().cpu() for m in maps])
    finally:
        for hook in [*hooks, last]:
            hook.remove()
    return [torch.cat(column) for column in zip(*found, strict=True)]


def imagenet_weights(node: Node, image_size: int) -> Any:
    """Return torchvision's ImageNet weights for a backbone, or None if there are none."""
    return getattr(build(node, image_size), "imagenet", None)


def imagenet_at_hand(node: Node, image_size: int) -> bool:
    """Tell whether a backbone has ImageNet weights, and these lie on this machine."""
    weights = imagenet_weights(node, image_size)
    return weights is not None and _weight_file(weights).is_file()


def _weight_file(weights: Any) -> Path:
    return Path(torch.hub.get_dir(), "checkpoints", weights.url.rsplit("/", 1)[-1])


def load_imagenet(encoder: Encoder) -> None:
    """Give an encoder torchvision's ImageNet weights, every one of them, and ImageNet's normalisation.

    Raises:
        UserError: there are none for this backbone, or they cannot be fetched.
    """
    from sslrun.data.fetch import explained

    backbone: Any = encoder.backbone
    weights = getattr(backbone, "imagenet", None)
    if weights is None:
        raise UserError("init=imagenet: there are no ImageNet weights for this backbone; resnet18 and mobilenetv2 have")
    with explained("ImageNet's weight file", weights.url, str(_weight_file(weights))):
        state = weights.get_state_dict(progress=False, check_hash=True)
    if isinstance(backbone, models.ResNet):
        state = {k: v for k, v in state.items() if not k.startswith("fc.")}
    else:
        state = {f"0.{k.removeprefix('features.')}": v for k, v in state.items() if k.startswith("features.")}
    backbone.load_state_dict(state)
    encoder.mean.copy_(torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
    encoder.std.copy_(torch.tensor(IMAGENET_STD).view(3, 1, 1))
