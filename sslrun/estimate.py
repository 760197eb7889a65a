"""How long training takes on this machine, from a few steps of it."""

import time
from dataclasses import dataclass

import numpy as np
import torch

from sslrun import modes
from sslrun.backbones import build_encoder
from sslrun.classifier import Classifier, Finetuning
from sslrun.config import Node, build
from sslrun.data.cache import physical_memory
from sslrun.data.dataset import Dataset
from sslrun.data.images import Images
from sslrun.device import Device
from sslrun.probe import SEARCHED, STRENGTHS, labelled_features, regression
from sslrun.train import rehearse, total_steps

OVERHEAD = 2.5  # seconds that a classifier takes beside all that is measured: starting, reading, evaluation
REGRESSED = 500  # pictures on which a logistic regression is measured


@dataclass(frozen=True)
class Estimate:
    """Of a pretraining.

    Attributes:
        device: on which it was measured, in the mode that was chosen.
        images_per_second: pictures of the data set, however many views are made of each.
        bytes: that training takes, with the decoded pictures where these are held on the device.
        memory: of the device, in bytes.
    """

    device: Device
    images_per_second: float
    bytes: int
    memory: int


def pretraining(
    images: Images, pretext: Node, backbone: Node, optimizer: Node, device: Node, image_size: int, batch_size: int
) -> Estimate:
    """Measure a pretraining by a few steps."""
    hardware = build(device)
    encoder = build_encoder(backbone, image_size, [0.5] * 3, [0.5] * 3)
    modes.choose(hardware, backbone, image_size, batch_size)
    model = hardware.put(build(pretext, encoder, image_size))
    on_gpu = hardware.torch.type == "cuda"
    memory = torch.cuda.get_device_properties(hardware.torch).total_memory if on_gpu else physical_memory()
    held = hardware.hold(images)
    took = rehearse(model, held, hardware, optimizer, batch_size, memory)
    size = took.bytes + (held.nbytes if held.device.type == "cuda" else 0)
    return Estimate(hardware, took.images_per_second, size, memory)


@dataclass(frozen=True)
class OfClassifier:
    """How long a classifier takes on so many labels, about.

    Attributes:
        images_per_second: in training.
        probe: seconds of a probe, evaluation included.
    """

    images_per_second: float
    probe: float

    def finetuning(self, train: Node, labels: int, validation: int) -> float:
        """Return the seconds of finetuning, its start from a probe and its evaluation included.

        Args:
            train: the node of its config.
            validation: pictures of it.
        """
        steps = total_steps(labels, train["epochs"], train["steps"], train["batch_size"], quiet=True)
        seen = steps * min(labels, train["batch_size"]) + train["evaluations"] * validation / 3  # forward is a third
        return self.probe + seen / self.images_per_second


def classifier(config: Node, data: Dataset, val: Dataset | None, labels: int) -> OfClassifier:
    """Measure a few steps of finetuning on so many labels, and a small logistic regression.

    Args:
        config: of the finetuning.
        data, val: training, some pictures of which are put through the network, and validation.
    """
    hardware = build(config["device"])
    image_size, train = config["dataset"]["image_size"], config["train"]
    modes.choose(hardware, config["backbone"], image_size, train["batch_size"])
    encoder = build_encoder(config["backbone"], image_size, [0.5] * 3, [0.5] * 3, "grid")  # which has more to do
    network = Classifier(encoder, len(data.class_names))
    model = hardware.put(Finetuning(network, build(config["augment"]), 0.1, 0, False, 1.0))
    assert data.labels is not None
    took = rehearse(
        model,
        data.images,
        hardware,
        config["optimizer"],
        min(labels, train["batch_size"]),
        physical_memory(),
        data.labels,
    )
    searched, validation = min(labels, SEARCHED), len(val or ())
    some = data.take(np.linspace(0, len(data) - 1, min(len(data), REGRESSED)).astype(int))
    features = labelled_features(encoder, some, hardware)
    began = time.perf_counter()
    regression(*features, features, 0, len(data.class_names))
    fit = (time.perf_counter() - began) / (len(STRENGTHS) + 1) / len(some)  # seconds a label
    probe = OVERHEAD + fit * (len(STRENGTHS) * searched + labels)
    seen = 2 * (searched + validation) + labels + validation  # with both readouts, then with the chosen one
    return OfClassifier(took.images_per_second, probe + seen / 3 / took.images_per_second)
