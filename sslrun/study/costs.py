"""What a classifier costs when it is used: the time of a prediction, and its size."""

import contextlib
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from sslrun.base.errors import UserError
from sslrun.config.build import build
from sslrun.config.types import Node
from sslrun.device import Device, inference_device
from sslrun.models.classifier import Classifier, KNNClassifier
from sslrun.models.features import probabilities
from sslrun.models.trained import load_classifier
from sslrun.run.find import read_summary
from sslrun.study.results import Row
from sslrun.training.candidates import KNN

BATCH = 64  # images, as in `sslrun predict`
REPEATS = 5  # of which the median is taken

Costs = tuple[float, float]  # milliseconds per image, and megabytes


def with_costs(rows: Sequence[Row], device: Node) -> list[Row]:
    """Return rows with the milliseconds that a prediction of an image takes, and the megabytes of the network.

    Networks that have backbone and image size in common are measured once, those with nearest neighbors by themselves.

    Args:
        rows: of a study.
        device: node of the config.
    """
    known: dict[str, Costs] = {}
    for row in rows:
        if (network := _network(row)) not in known:
            with contextlib.suppress(UserError):  # its weights were deleted; another row may have them
                known[network] = _measured(Path(row.finetuned), row.image_size, device)
    costs = [known.get(_network(row), (None, None)) for row in rows]
    return [replace(r, ms_per_image=ms, megabytes=mb) for r, (ms, mb) in zip(rows, costs, strict=True)]


def _network(row: Row) -> str:
    """Return what the costs of a classifier depend on, as JSON."""
    backbone = read_summary(Path(row.finetuned))["config"]["backbone"]
    return json.dumps([backbone, row.image_size, row.labels_train if row.mode == KNN else 0], sort_keys=True)


def _measured(directory: Path, image_size: int, device: Node) -> Costs:
    trained = load_classifier(directory)
    assert trained.classifier is not None
    build(device).claim()  # again, since runs of the study may have changed the number of threads
    hardware = inference_device(device, trained.config["device"])
    hardware.put(trained.classifier)
    return milliseconds(trained.classifier, image_size, hardware), megabytes(trained.classifier)


def milliseconds(classifier: Classifier | KNNClassifier, image_size: int, device: Device) -> float:
    """Return the milliseconds per image of predictions in batches of 64, without reading and decoding the images."""
    images = torch.zeros(BATCH, 3, image_size, image_size, dtype=torch.uint8)
    seconds = [_seconds(classifier, images, device) for _ in range(1 + REPEATS)][1:]  # the first one is slower
    return 1000 * statistics.median(seconds) / BATCH


def _seconds(classifier: Classifier | KNNClassifier, images: Tensor, device: Device) -> float:
    began = time.perf_counter()
    probabilities(classifier, images, device, BATCH)
    device.wait()
    return time.perf_counter() - began


def megabytes(network: nn.Module) -> float:
    """Return the size of a network's parameters and buffers, 10^6 bytes."""
    return sum(t.numel() * t.element_size() for t in network.state_dict().values()) / 1e6
