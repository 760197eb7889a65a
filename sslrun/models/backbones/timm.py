"""Networks of timm (PyTorch Image Models)."""

from typing import Any

import torch
from torch import Tensor, nn

from sslrun.base.errors import UserError, described
from sslrun.config.names import nearest

INSTALL = "pip install 'sslrun[timm]'"
ONE_SIZE = 4  # maps of a network whose maps have all the same size, such as a vision transformer


def timm(image_size: int, *, name: str, weights: str | None = None) -> nn.Module:
    """A network of timm without its classifier, with random weights.

    Args:
        weights: file of `init=pretrained`, see `sslrun.models.published`; the network is built without it.

    Raises:
        UserError: timm is not installed or does not know the name, or the network has no feature maps.
    """
    try:
        import timm as library
    except ModuleNotFoundError:
        raise UserError(f"backbone=timm needs the package timm: {INSTALL}") from None
    if not library.is_model(name):
        raise UserError(f"backbone.name={name}: timm has no such network{nearest(name, library.list_models())}")
    fixed = getattr(library.get_pretrained_cfg(name), "fixed_input_size", False)
    try:
        size: dict[str, Any] = {"img_size": image_size} if fixed else {}
        net = library.create_model(name, num_classes=0, **size)
        return Timm(net, image_size)
    except Exception as error:  # each of its networks raises what it likes
        raise UserError(
            f"backbone.name={name}: no feature maps for images of {image_size} px ({described(error)}); set "
            "dataset.image_size, or choose another network"
        ) from error


def is_known(name: str) -> bool:
    """Return whether timm is installed and has a network of this name."""
    try:
        import timm as library
    except ModuleNotFoundError:
        return False
    return bool(library.is_model(name))


def names() -> list[str]:
    """Return the names of timm's networks; none if it is not installed."""
    try:
        import timm as library
    except ModuleNotFoundError:
        return []
    return list(library.list_models())


def pretrained(name: str) -> Any:
    """Return timm's description of the weights that it has for a network, or None without any, or without timm."""
    if not is_known(name):
        return None
    import timm as library

    config = library.get_pretrained_cfg(name)
    return config if config is not None and config.hf_hub_id else None


def heads(name: str) -> tuple[str, ...]:
    """Return the beginnings of the keys of a network's classifier."""
    import timm as library

    config = library.get_pretrained_cfg(name)
    classifier: Any = config.classifier if config else ()
    return tuple(f"{c}." for c in ([classifier] if isinstance(classifier, str) else classifier or ()))


class Timm(nn.Module):
    """Returns the last feature map of each resolution, and the input of the global pooling as the last one.

    Where all maps have one resolution, as in a vision transformer, there are four, at equal distances.

    Args:
        net: a network of timm without a classifier.
        image_size: in px.

    Attributes:
        channels: of the maps.
    """

    def __init__(self, net: Any, image_size: int) -> None:
        super().__init__()
        self.net = net
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            final, maps = net.eval().forward_intermediates(torch.zeros(1, 3, image_size, image_size))
        net.train()
        sizes = [m.shape[2:] for m in maps]
        if len(set(sizes)) == 1 < len(sizes):
            self.indices = sorted({-(-len(maps) * (k + 1) // ONE_SIZE) - 1 for k in range(ONE_SIZE)})
        else:
            self.indices = [i for i in range(len(maps)) if i + 1 == len(maps) or sizes[i] != sizes[i + 1]]
        self.channels: list[int] = [maps[i].shape[1] for i in self.indices]
        # For example a convolution to more channels before pooling; tokens and channels last are no such map.
        self.has_final = final.ndim == 4 and final.shape[1] == net.num_features and final.shape[2:] == sizes[-1]
        if self.has_final and final.shape[1] == self.channels[-1]:
            self.indices, self.channels = self.indices[:-1], self.channels[:-1]
        if self.has_final:
            self.channels.append(final.shape[1])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps, fine to coarse."""
        if self.has_final:
            final, maps = self.net.forward_intermediates(x, indices=self.indices)
            return [*maps, final]
        return list(self.net.forward_intermediates(x, indices=self.indices, norm=True, intermediates_only=True))
