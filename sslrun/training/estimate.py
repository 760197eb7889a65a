"""How long training takes on this machine and how much memory it needs, from a few steps of it."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sslrun.augment import ORDER, VIEWS, Rng, generator
from sslrun.base.machine import physical_memory
from sslrun.config.build import build
from sslrun.config.types import Node
from sslrun.data.dataset import Dataset
from sslrun.data.images import Images
from sslrun.device import Device
from sslrun.evaluation.probe import C_VALUES, SEARCHED, labeled_features, regression
from sslrun.models.classifier import Classifier
from sslrun.models.encoder import build_encoder
from sslrun.tasks.finetuning.supervised import Finetuning
from sslrun.tasks.task import Task, build_task
from sslrun.training.autotune import choose
from sslrun.training.batches import Step, batch_of
from sslrun.training.loop import train_step
from sslrun.training.optimizers import build_optimizer
from sslrun.training.settings import Training

REHEARSAL = 3.0  # seconds that a rehearsal takes, about


@dataclass(frozen=True)
class Rehearsal:
    """What a few steps took.

    Attributes:
        images_per_second: pictures of the data set, however many views are made of each.
        bytes: of weights, gradients, the optimiser's state, and what is kept for the backward pass of a whole batch.
    """

    images_per_second: float
    bytes: int


def rehearse(
    task: Task,
    images: Tensor | Images,
    device: Device,
    optimizer_node: Node,
    batch_size: int,
    memory: int,
    labels: Tensor | None = None,
) -> Rehearsal:
    """Take a few steps of a training that nothing comes of, to say how fast it is and how much memory it needs.

    The steps are on whole batches if these are quick and fit into half of the memory, else on 32 pictures.
    """
    optimizer = build_optimizer(optimizer_node, task, 0.0)
    weights = [p for p in task.parameters() if p.requires_grad]
    own = {p.untyped_storage().data_ptr() for p in task.parameters()}
    kept: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    def step(n: int, i: int) -> float:
        began = time.perf_counter()
        rows = torch.randperm(len(images), generator=generator(0, ORDER, i))[:n]
        batch = batch_of(images[rows], labels, rows, device)
        out = train_step(task, Step(0, batch, Rng(generator(0, VIEWS, 0, i)), n), 1, optimizer, device, None)
        float(out["loss"])  # waits for the device
        return time.perf_counter() - began

    few = min(batch_size, len(images), 32)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        step(few, 0)
    activations = sum(size for place, size in kept.items() if place not in own) * batch_size // few
    states = sum(t.nbytes for s in optimizer.state.values() for t in s.values() if isinstance(t, Tensor))
    needed = 2 * sum(w.nbytes for w in weights) + states + activations
    n = min(batch_size, len(images))
    n = n if step(few, 1) * n / few < REHEARSAL and needed < memory / 2 else few
    times: list[float] = []
    while len(times) < 3 or sum(times) < REHEARSAL / 3:
        times.append(step(n, 2 + len(times)))
    times.sort()
    return Rehearsal(n / times[len(times) // 2], needed)


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
    choose(hardware, backbone, image_size, batch_size)
    task = build_task(pretext, encoder, image_size)
    hardware.put(task)
    on_gpu = hardware.torch.type == "cuda"
    memory = torch.cuda.get_device_properties(hardware.torch).total_memory if on_gpu else physical_memory()
    on_device = images.on(hardware.torch)
    took = rehearse(task, on_device, hardware, optimizer, batch_size, memory)
    size = took.bytes + (on_device.nbytes if on_device.device.type == "cuda" else 0)
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

    def finetuning(self, training: Training, labels: int, validation: int) -> float:
        """Return the seconds of finetuning, its start from a probe and its evaluation included.

        Args:
            training: its settings.
            validation: pictures of it.
        """
        steps = training.total_steps(labels)
        seen = steps * min(labels, training.batch_size) + training.evaluations * validation / 3  # forward is a third
        return self.probe + seen / self.images_per_second


def classifier(config: Node, data: Dataset, val: Dataset | None, labels: int) -> OfClassifier:
    """Measure a few steps of finetuning on so many labels, and a small logistic regression.

    Args:
        config: of the finetuning.
        data, val: training, some pictures of which are put through the network, and validation.
    """
    hardware = build(config["device"])
    hardware.claim()  # as the run itself will; it may have other threads than the study
    image_size, batch_size = config["dataset"]["image_size"], config["train"]["batch_size"]
    choose(hardware, config["backbone"], image_size, batch_size)
    encoder = build_encoder(config["backbone"], image_size, [0.5] * 3, [0.5] * 3, "grid")  # which has more to do
    network = Classifier(encoder, len(data.class_names))
    task = Finetuning(network, build(config["augment"]), 0.1, 0, False, 1.0)
    hardware.put(task)
    assert data.labels is not None
    took = rehearse(
        task,
        data.images,
        hardware,
        config["optimizer"],
        min(labels, batch_size),
        physical_memory(),
        data.labels,
    )
    searched, validation = min(labels, SEARCHED), len(val or ())
    some = data.take(np.linspace(0, len(data) - 1, min(len(data), REGRESSED)).astype(int))
    features = labeled_features(encoder, some, hardware)
    began = time.perf_counter()
    regression(*features, features, 0, len(data.class_names))
    fit = (time.perf_counter() - began) / (len(C_VALUES) + 1) / len(some)  # seconds a label
    probe = OVERHEAD + fit * (len(C_VALUES) * searched + labels)
    seen = 2 * (searched + validation) + labels + validation  # with both poolings, then with the chosen one
    return OfClassifier(took.images_per_second, probe + seen / 3 / took.images_per_second)
