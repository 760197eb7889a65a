"""Estimates of training time and memory on this machine, from a few training steps."""

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

SECONDS = 3.0  # time budget of a measurement, approximately


@dataclass(frozen=True)
class Measurement:
    """Speed and memory of training steps.

    Attributes:
        images_per_second: images of the data set, regardless of the number of views of each.
        bytes: size of weights, gradients, optimizer state, and activations saved for the backward pass of a batch.
    """

    images_per_second: float
    bytes: int


def measure(
    task: Task,
    images: Tensor | Images,
    device: Device,
    optimizer_node: Node,
    batch_size: int,
    memory: int,
    labels: Tensor | None = None,
) -> Measurement:
    """Measure speed and memory in a few training steps with a learning rate of 0.

    Whole batches are used if they are quick and fit into half of the memory, otherwise batches of 32 images.

    Args:
        memory: memory of the device in bytes.
    """
    optimizer = build_optimizer(optimizer_node, task, 0.0)
    weights = [p for p in task.parameters() if p.requires_grad]
    parameters = {p.untyped_storage().data_ptr() for p in task.parameters()}
    saved: dict[int, int] = {}

    def record(t: Tensor) -> Tensor:
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    def step(n: int, i: int) -> float:
        began = time.perf_counter()
        rows = torch.randperm(len(images), generator=generator(0, ORDER, i))[:n]
        batch = batch_of(images[rows], labels, rows, device)
        out = train_step(task, Step(0, batch, Rng(generator(0, VIEWS, 0, i)), n), 1, optimizer, device, None)
        float(out["loss"])  # waits for the device
        return time.perf_counter() - began

    small = min(batch_size, len(images), 32)
    with torch.autograd.graph.saved_tensors_hooks(record, lambda t: t):
        step(small, 0)
    activations = sum(size for pointer, size in saved.items() if pointer not in parameters) * batch_size // small
    states = sum(t.nbytes for s in optimizer.state.values() for t in s.values() if isinstance(t, Tensor))
    needed = 2 * sum(w.nbytes for w in weights) + states + activations
    n = min(batch_size, len(images))
    n = n if step(small, 1) * n / small < SECONDS and needed < memory / 2 else small
    times: list[float] = []
    while len(times) < 3 or sum(times) < SECONDS / 3:
        times.append(step(n, 2 + len(times)))
    times.sort()
    return Measurement(n / times[len(times) // 2], needed)


OVERHEAD = 2.5  # seconds per classifier that are not measured: startup, reading, evaluation
REGRESSION_IMAGES = 500  # for timing the logistic regression


@dataclass(frozen=True)
class Estimate:
    """Speed and memory of a pretraining.

    Attributes:
        device: device of the measurement, with the precision and memory format chosen by autotuning.
        images_per_second: images of the data set, regardless of the number of views of each.
        bytes: memory for training, including the decoded images if they are kept on the device.
        memory: memory of the device in bytes.
    """

    device: Device
    images_per_second: float
    bytes: int
    memory: int


def pretraining(
    images: Images, pretext: Node, backbone: Node, optimizer: Node, device: Node, image_size: int, batch_size: int
) -> Estimate:
    """Estimate a pretraining from a few steps."""
    hardware = build(device)
    encoder = build_encoder(backbone, image_size, [0.5] * 3, [0.5] * 3)
    choose(hardware, backbone, image_size, batch_size)
    task = build_task(pretext, encoder, image_size)
    hardware.put(task)
    on_gpu = hardware.torch.type == "cuda"
    memory = torch.cuda.get_device_properties(hardware.torch).total_memory if on_gpu else physical_memory()
    on_device = images.on(hardware.torch)
    measured = measure(task, on_device, hardware, optimizer, batch_size, memory)
    size = measured.bytes + (on_device.nbytes if on_device.device.type == "cuda" else 0)
    return Estimate(hardware, measured.images_per_second, size, memory)


@dataclass(frozen=True)
class ClassifierEstimate:
    """Approximate time to train a classifier on a given number of labels.

    Attributes:
        images_per_second: speed of training.
        probe: seconds for a linear probe, including evaluation.
    """

    images_per_second: float
    probe: float

    def finetuning(self, training: Training, labels: int, validation: int) -> float:
        """Return the seconds for finetuning, including the linear probe that initializes the head, and evaluation.

        Args:
            training: settings of the finetuning.
            labels: number of labeled images.
            validation: number of validation images.
        """
        steps = training.total_steps(labels)
        # A forward pass takes a third of a step.
        images = steps * min(labels, training.batch_size) + training.evaluations * validation / 3
        return self.probe + images / self.images_per_second


def classifier(config: Node, data: Dataset, val: Dataset | None, labels: int) -> ClassifierEstimate:
    """Estimate classifiers from a few steps of finetuning and a small logistic regression.

    Args:
        config: config of the finetuning.
        data, val: training and validation data; some of the training images are used for the measurement.
        labels: number of labeled images.
    """
    hardware = build(config["device"])
    hardware.claim()  # as the run will; its number of threads may differ from the study's
    image_size, batch_size = config["dataset"]["image_size"], config["train"]["batch_size"]
    choose(hardware, config["backbone"], image_size, batch_size)
    encoder = build_encoder(config["backbone"], image_size, [0.5] * 3, [0.5] * 3, "grid")  # the slower pooling
    network = Classifier(encoder, len(data.class_names))
    task = Finetuning(network, build(config["augment"]), 0.1, 0, False, 1.0)
    hardware.put(task)
    assert data.labels is not None
    measured = measure(
        task,
        data.images,
        hardware,
        config["optimizer"],
        min(labels, batch_size),
        physical_memory(),
        data.labels,
    )
    searched, validation = min(labels, SEARCHED), len(val or ())
    some = data.take(np.linspace(0, len(data) - 1, min(len(data), REGRESSION_IMAGES)).astype(int))
    features = labeled_features(encoder, some, hardware)
    began = time.perf_counter()
    regression(*features, features, 0, len(data.class_names))
    fit = (time.perf_counter() - began) / (len(C_VALUES) + 1) / len(some)  # seconds per label
    probe = OVERHEAD + fit * (len(C_VALUES) * searched + labels)
    embedded = 2 * (searched + validation) + labels + validation  # with both poolings, then with the chosen one
    return ClassifierEstimate(measured.images_per_second, probe + embedded / 3 / measured.images_per_second)
