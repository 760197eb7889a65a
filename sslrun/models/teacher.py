"""Teachers of a distillation: a network with published weights, or that of a run."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.base.machine import physical_memory
from sslrun.config.build import build
from sslrun.config.commands import FOR_ENCODER, WITH_CLASSIFIER
from sslrun.config.names import nearest
from sslrun.config.nodes import network_name
from sslrun.config.types import Node
from sslrun.data.images import Images
from sslrun.models.backbones import timm as of_timm
from sslrun.models.backbones import torchvision as of_torchvision
from sslrun.models.encoder import Encoder, build_encoder
from sslrun.models.published import TIMM, TORCHVISION, Published, load, published
from sslrun.models.trained import load_network
from sslrun.run.find import read_summary
from sslrun.run.named import named_run


@dataclass(frozen=True)
class Teacher:
    """A network whose features are learned.

    Attributes:
        name: of the network.
        image_size: in px, of its images.
        encoder: in evaluation mode.
        source: of its weights, with their license.
        settings: `channels` and `resize` of its images, if it is of a run.
        origin: of a network that learns from it, see `origin_of`.
    """

    name: str
    image_size: int
    encoder: Encoder
    source: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)

    def refuse_other_images(self, images: Images) -> None:
        """Raise if images are read in another way than those of the teacher's training."""
        for original in images.originals:
            for key, value in self.settings.items():
                if original.settings.get(key, value) != value:
                    raise UserError(
                        f"pretext.teacher={self.source} was trained with dataset.{key}={value}, these images have "
                        f"{original.settings[key]}: set dataset.{key}={value}"
                    )

    def digest(self) -> str:
        """Return a hash of the weights."""
        out = hashlib.sha256()
        for name, tensor in self.encoder.state_dict().items():
            out.update(f"{name} {tuple(tensor.shape)}".encode())
            out.update(tensor.detach().cpu().contiguous().numpy().data)
        return out.hexdigest()[:32]


def teacher_of(name: str | None, weights: str | None) -> Teacher:
    """Return a teacher; its weights are downloaded if they are not on this machine. The random state does not change.

    Args:
        name: of a network of timm or torchvision, also as `timm/NAME` or `torchvision/NAME`, or the directory of a run;
            None is the first network with published weights on this machine.
        weights: a file with the weights; None are those that the library publishes.

    Raises:
        UserError: there is no such network, run or file, or the weights do not fit.
    """
    if name is not None and is_run(name):
        if weights is not None:
            raise UserError(f"pretext.weights={weights} has no effect on a run as the teacher; remove it")
        trained = load_network(named_run(name, (*FOR_ENCODER, *WITH_CLASSIFIER))[0])
        origin = dict(trained.origin)
        seen = {"labels_seen": origin.pop("labels_seen")} if "labels_seen" in origin else {}
        for labels in seen.values():
            log.warning("%s was trained with labels (%s), which later label budgets do not count.", name, labels)
        dataset = trained.config["dataset"]
        settings = {key: dataset[key] for key in ("channels", "resize")}
        network = network_name(trained.config["backbone"])
        origin = {"teacher": {"source": name, **origin}, **seen}
        return Teacher(network, dataset["image_size"], trained.encoder, name, settings, origin)
    given = published(node_of(name, weights))
    _refuse_too_large(given)
    with torch.random.fork_rng(devices=[]):
        encoder = build_encoder(given.backbone, given.image_size, given.mean, given.std)
    load(given, encoder.backbone)
    source, origin = f"{given.source}, license: {given.license}", {"source": given.source, "license": given.license}
    return Teacher(given.name, given.image_size, encoder.eval(), source, origin={"teacher": origin})


def is_run(name: str) -> bool:
    """Return whether the name of a teacher is the directory of a run."""
    return os.path.exists(os.path.join(name, "summary.json"))


def _refuse_too_large(weights: Published) -> None:
    """Raise if the weights need more than half of the memory, since they are read next to the network."""
    with torch.device("meta"):
        network = build(weights.backbone, weights.image_size)
    needed = sum(p.nbytes for p in network.parameters())
    if (memory := physical_memory()) and needed > memory / 2:
        raise UserError(
            f"pretext.teacher={weights.name} has {needed / 1e9:.1f} GB of weights, too much for the memory of "
            f"{memory / 1e9:.0f} GB; use a smaller network"
        )


def teacher_name(node: Node) -> str | None:
    """Return the name by which `node_of` has a network of a library, or None for another one."""
    if node["_target_"] not in (TIMM, TORCHVISION):
        return None
    name: str = node["name"]
    return f"torchvision/{name}" if node["_target_"] == TORCHVISION and of_timm.is_known(name) else name


def node_of(name: str | None, weights: str | None) -> Node:
    """Return the config node of a network by its name, see `teacher_of`; an empty one without a name.

    Raises:
        UserError: there is no such network or file.
    """
    if weights is not None and not os.path.isfile(os.path.expanduser(weights)):
        raise UserError(f"pretext.weights={weights}: no such file")
    if name is None and weights is not None:
        raise UserError(f"pretext.weights={weights} needs pretext.teacher, the name of its network")
    if name is None:
        return {}
    library, _, network = name.rpartition("/")
    if library in ("", "timm") and of_timm.is_known(network):
        return {"_target_": TIMM, "name": network, "weights": weights}
    if library in ("", "torchvision") and network in of_torchvision.names():
        return {"_target_": TORCHVISION, "name": network, "weights": weights}
    if os.path.isdir(name):
        read_summary(Path(name))  # raises: it is a sweep, or no run
    hint = nearest(network, [*of_timm.names(), *of_torchvision.names()])
    raise UserError(
        f"pretext.teacher={name}: no run, and no network of timm or torchvision{hint or ';'} sslrun weights lists "
        "published weights"
    )
