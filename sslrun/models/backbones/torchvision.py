"""Networks of torchvision, as they are published: with their own stem."""

import itertools
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from sslrun.base.errors import UserError
from sslrun.config.names import nearest

TRACED = 224  # px: size of the image with which the maps are found
CLASSIFIER = ("avgpool", "fc", "classifier", "head")  # first part of the names of what comes after the feature maps
HEADS = ("fc.", "classifier.", "head.", "aux1.", "aux2.", "AuxLogits.")  # beginnings of the keys of classifiers
NO_MAPS = "vit_"  # beginning of the names of networks without feature maps
HALVES = ("googlenet", "inception_v3")  # trained with mean and std 0.5, to which torchvision converts ImageNet's
OLD_KEY = re.compile(r"(.*denselayer\d+\.(?:norm|conv))\.([12]\..*)")  # such as denselayer1.norm.1.weight, now norm1


def names() -> list[str]:
    """Return the names of torchvision's classification networks."""
    return list(models.list_models(module=models))


def weights(name: str) -> Any:
    """Return torchvision's recommended weights for a network, or None if it has none."""
    if name not in names():
        return None
    return getattr(models.get_model_weights(name), "DEFAULT", None)


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a published state dict under today's keys: the files of DenseNet have older ones."""
    return {OLD_KEY.sub(r"\1\2", key): value for key, value in state.items()}


def torchvision(image_size: int, *, name: str, weights: str | None = None) -> nn.Module:
    """A classification network of torchvision without its classifier, with random weights.

    Args:
        weights: file of `init=pretrained`, see `sslrun.models.published`; the network is built without it.

    Raises:
        UserError: torchvision does not know the name, or the network has no feature maps.
    """
    if name not in names():
        raise UserError(f"backbone.name={name}: torchvision has no such network{nearest(name, names())}")
    google = {"aux_logits": False, "init_weights": True} if name in HALVES else {}
    net = models.get_model(name, weights=None, **google)
    ends = _ends(net)
    if not ends:
        raise UserError(f"backbone.name={name}: this network has no feature maps; choose a convolutional one")
    return Torchvision(net, ends)


class Torchvision(nn.Module):
    """Returns the last feature map of each resolution; the last one is the input of the global pooling.

    Args:
        net: a network of torchvision.
        ends: the name of the node of each map -> its channels, fine to coarse.

    Attributes:
        channels: of the maps.
    """

    def __init__(self, net: nn.Module, ends: dict[str, int]) -> None:
        super().__init__()
        self.net = create_feature_extractor(net, {end: end for end in ends}, suppress_diff_warning=True)
        self.channels = list(ends.values())

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps, fine to coarse."""
        return list(self.net(x).values())


def _ends(net: nn.Module) -> dict[str, int]:
    """Return the name of the node of the last feature map of each resolution, and its channels, fine to coarse.

    A map is the output of a block: of a child of the network, or of a child of a sequence of blocks. A network whose
    global pooling does not take a map, as a vision transformer, has none.
    """
    try:
        names = get_graph_node_names(net)[1]
        outputs = create_feature_extractor(net, eval_return_nodes=names, train_return_nodes=names[:1]).eval()
        with torch.no_grad():
            found = outputs(torch.zeros(1, 3, TRACED, TRACED))
    except Exception:  # a vision transformer, for example, checks the image size
        return {}
    maps: dict[int, tuple[str, int]] = {}
    last = ""
    for name, following in itertools.pairwise(names[1:]):
        if _block(name, net) == _block(following, net):
            continue  # not the end of the block
        out = found[name]
        if name.split(".")[0] in CLASSIFIER or not isinstance(out, Tensor) or out.ndim != 4 or out.shape[2] == 1:
            break
        last = name
        if out.shape[2] == out.shape[3] < TRACED:
            maps[out.shape[2]] = name, out.shape[1]
    ends = dict(maps[side] for side in sorted(maps, reverse=True))
    return ends if last in ends else {}


def _block(name: str, net: nn.Module) -> str:
    """Return the block of a node: the first part of its name, or two within a sequence of blocks."""
    first, _, rest = name.partition(".")
    sequence = isinstance(getattr(net, first, None), nn.Sequential | nn.ModuleList)
    return f"{first}.{rest.partition('.')[0]}" if sequence and rest else first
