"""Estimates of training time and memory on this machine, from a few training steps."""

import importlib
import math
import time
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sslrun.augment import ORDER, VIEWS, Rng, generator
from sslrun.base.errors import UserError
from sslrun.base.machine import cores, physical_memory
from sslrun.config.build import build
from sslrun.config.types import Node
from sslrun.data.images import Images
from sslrun.data.labeled import Labeled
from sslrun.device import Device
from sslrun.evaluation.probe import SEARCHED, FoldRegression
from sslrun.models.classifier import Classifier
from sslrun.models.encoder import build_encoder
from sslrun.models.features import features as features_of
from sslrun.tasks.finetuning.supervised import Finetuning
from sslrun.tasks.task import Task, build_task
from sslrun.training.autotune import choose
from sslrun.training.batches import Step, batch_of
from sslrun.training.candidates import FEW_LABELS, folds_of
from sslrun.training.jobs import one_torch_thread
from sslrun.training.loop import train_step
from sslrun.training.optimizers import build_optimizer
from sslrun.training.settings import FORWARD_COST, Training

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
    quick: bool = False,
) -> Measurement:
    """Measure speed and memory in a few training steps with a learning rate of 0.

    Whole batches are used if they are quick and fit into half of the memory, otherwise batches of 32 images.

    Args:
        memory: memory of the device in bytes.
        quick: time a single step.
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
        out = train_step(task, Step(0, batch, Rng(generator(0, VIEWS, i)), n), 1, optimizer, device, None)
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
    while not times or (not quick and (len(times) < 3 or sum(times) < SECONDS / 3)):
        times.append(step(n, 2 + len(times)))
    times.sort()
    return Measurement(n / times[len(times) // 2], needed)


PREPARED = 48  # images for timing `prepare`
OVERHEAD = 2.5  # seconds per classifier that are not measured: startup, reading, evaluation
REGRESSION_IMAGES = 500  # for timing the logistic regressions
BOTH_POOLINGS = 1.25  # time of the regressions on both poolings, as a multiple of that on `grid`
WORKERS = 6.0  # seconds until worker processes have started


@dataclass(frozen=True)
class Estimate:
    """Speed and memory of a pretraining.

    Attributes:
        device: device of the measurement, with the precision and memory format chosen by autotuning.
        images_per_second: images of the data set, regardless of the number of views of each.
        bytes: memory for training, including the decoded images if they are kept on the device.
        memory: memory of the device in bytes.
        preparation: seconds of the task's `prepare`, unless its result is cached.
    """

    device: Device
    images_per_second: float
    bytes: int
    memory: int
    preparation: float


def pretraining(
    images: Images, pretext: Node, backbone: Node, optimizer: Node, device: Node, image_size: int, batch_size: int
) -> Estimate:
    """Estimate a pretraining from a few steps."""
    hardware = build(device)
    encoder = build_encoder(backbone, image_size, [0.5] * 3, [0.5] * 3)
    choose(hardware, backbone, image_size, batch_size)
    task = build_task(pretext, encoder, image_size)
    task.set_sizes(len(images), min(batch_size, len(images)))
    hardware.put(task)
    on_gpu = hardware.torch.type == "cuda"
    memory = torch.cuda.get_device_properties(hardware.torch).total_memory if on_gpu else physical_memory()
    preparation, measured_on = 0.0, images
    if type(task).prepare is not Task.prepare:  # some images, each several times
        few = np.linspace(0, len(images) - 1, min(len(images), PREPARED)).astype(int)
        measured_on = images.take(np.resize(few, min(len(images), batch_size)))
        with suppress(UserError):  # two images may not be enough
            task.prepare(images.take(np.resize(few[:2], len(measured_on))), hardware)  # which also loads a network
        began = time.perf_counter()
        task.prepare(measured_on, hardware)
        preparation = (time.perf_counter() - began) / len(few) * len(images)
    on_device = measured_on.on(hardware.torch)
    measured = measure(task, on_device, hardware, optimizer, batch_size, memory)
    size = measured.bytes + (images.nbytes if on_device.device.type == "cuda" else 0)
    return Estimate(hardware, measured.images_per_second, size, memory, preparation)


@dataclass(frozen=True)
class ClassifierEstimate:
    """Approximate time to train a classifier on a given number of labels.

    Attributes:
        images_per_second: speed of training.
        one_thread: the same with one thread, as in the folds.
        at_once: number of trainings of folds that run at the same time.
        probe: seconds for the regressions on frozen features, in all folds and finally, including evaluation.
        labels, validation: number of labeled images, and of those of a validation split.
        folds: numbers of training images of the folds in which trainings are compared.
    """

    images_per_second: float
    one_thread: float
    at_once: int
    probe: float
    labels: int
    validation: int
    folds: list[int]

    def finetuning(self, training: Training, steps: int, candidates: int) -> float:
        """Return the seconds for a finetuning: regressions, trainings in the folds, and the final training.

        Args:
            training: settings of the finetuning.
            steps: of each training.
            candidates: number of trained networks, or settings, that are compared.
        """
        each = images = steps * min(self.labels, training.batch_size)
        if self.validation:
            evaluations = 1 + training.with_affordable_evaluations(each, self.validation).evaluations
            images += round(evaluations * self.validation * FORWARD_COST)
        return self.probe + self.in_folds(training, steps, candidates) + images / self.images_per_second

    def in_folds(self, training: Training, steps: int, candidates: int) -> float:
        """Return the seconds of the trainings in the folds; for the arguments see `finetuning`."""
        compared = self.folds * candidates if candidates > 1 or not self.validation else []
        if not compared:
            return 0.0
        largest = steps * min(max(compared), training.batch_size) / self.one_thread
        return math.ceil(len(compared) / self.at_once) * largest + WORKERS * (self.at_once > 1)


def classifier(config: Node, labeled: Labeled, seed: int = 0, quick: bool = False) -> ClassifierEstimate:
    """Estimate classifiers from a few steps of finetuning and a small logistic regression.

    Args:
        config: config of the finetuning.
        labeled: the labeled images; further ones of their pool are used for the measurement.
        seed: of the folds.
        quick: time single steps.
    """
    hardware = build(config["device"])
    hardware.claim()  # as the run will; its number of threads may differ from the study's
    image_size, batch_size = config["dataset"]["image_size"], config["train"]["batch_size"]
    choose(hardware, config["backbone"], image_size, batch_size)
    encoder = build_encoder(config["backbone"], image_size, [0.5] * 3, [0.5] * 3, "grid")  # the slower pooling
    data, classes = labeled.pool, len(labeled.pool.class_names)
    task = Finetuning(Classifier(encoder, classes), build(config["augment"]), 0.1, 0, False, 1.0)
    hardware.put(task)
    assert data.labels is not None
    labels, validation = len(labeled.budget), len(labeled.val or ())
    arguments = (task, data.images, hardware, config["optimizer"], min(labels, batch_size), physical_memory())
    speed = measure(*arguments, data.labels, quick).images_per_second
    one_thread, at_once = speed, 1
    if hardware.torch.type == "cpu" and cores() > 1:
        with one_torch_thread():
            one_thread, at_once = measure(*arguments, data.labels, quick).images_per_second, cores()
    some = data.take(np.linspace(0, len(data) - 1, min(len(data), REGRESSION_IMAGES)).astype(int))
    assert some.labels is not None
    x = features_of(encoder, some.images, hardware)
    folds = folds_of(labeled, seed)
    searched = sum(min(len(f.train), SEARCHED) for f in folds.regressions)
    fitted = _regression_seconds(x, some.labels, classes) * searched / (at_once if labels > FEW_LABELS else 1)
    probe = OVERHEAD + fitted + (labels + validation) * FORWARD_COST / speed
    sizes = [len(f.train) for f in folds.trainings]
    return ClassifierEstimate(speed, one_thread, at_once, probe, labels, validation, sizes)


def _regression_seconds(features: Tensor, labels: Tensor, classes: int) -> float:
    """Return the seconds per image of the regressions of a fold: with every C, on both poolings.

    Args:
        features, labels: of some images with the slower pooling, `grid`.
    """
    x, y = features.numpy(), labels.numpy()
    if len(labels.unique()) < 2:
        return 0.0
    importlib.import_module("sklearn.linear_model")  # which takes a second
    began = time.perf_counter()
    FoldRegression(x, y, x[:1], classes, "none").probabilities()
    return BOTH_POOLINGS * (time.perf_counter() - began) / len(x)
