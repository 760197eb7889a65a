"""Estimates of time and memory, with a clock that only the trained network moves."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sslrun.augment import Rng
from sslrun.data.dataset import Dataset
from sslrun.data.images import Images
from sslrun.data.labeled import Labeled
from sslrun.device import Device
from sslrun.evaluation.probe import FoldRegression
from sslrun.models.classifier import Classifier
from sslrun.tasks.task import Task
from sslrun.training import estimate
from sslrun.training.estimate import ClassifierEstimate, Measurement
from sslrun.training.settings import Training
from tests.helpers import ADAMW, CPU, IDENTITY, QUICK
from tests.training.fitting import PLAIN_SGD, SETTINGS

HALF = 192 * 10  # weights of the layer


class Timed(Task):
    """A linear layer that takes some seconds per image; remembers its batches."""

    def __init__(self, clock: list[float], seconds: float) -> None:
        super().__init__()
        self.layer = nn.Linear(192, 10, bias=False)
        self.clock, self.seconds, self.sizes = clock, seconds, list[int]()
        self.labels: list[Tensor | None] = []

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        self.sizes.append(len(batch["images"]))
        self.labels.append(batch.get("labels"))
        self.clock[0] += self.seconds * len(batch["images"])
        return {"loss": self.layer(batch["images"].flatten(1)).mean()}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(estimate, "SECONDS", 3.0)  # not the tenth of a second of the other tests
    return now


def images(n: int) -> Tensor:
    return torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 3, 8, 8).contiguous()


@pytest.mark.parametrize(
    ("seconds", "batch_size", "memory", "size"),
    [(0.01, 64, 2**30, 64), (0.01, 400, 2**30, 200), (0.05, 64, 2**30, 32), (0.01, 64, 100_000, 32),
     (0.01, 16, 2**30, 16)],
    ids=["whole", "fewer images", "slow", "too large", "small"],
)  # fmt: skip
def test_whole_batches_are_measured_unless_they_are_slow_or_large(
    seconds: float, batch_size: int, memory: int, size: int, clock: list[float]
) -> None:
    task = Timed(clock, seconds)
    before = task.layer.weight.detach().clone()
    result = estimate.measure(task, images(200), CPU, PLAIN_SGD, batch_size, memory)
    assert result.images_per_second == pytest.approx(1 / seconds)
    assert task.sizes[:2] == [min(batch_size, 32)] * 2
    assert set(task.sizes[2:]) == {size}
    assert len(task.sizes) >= 5
    assert sum(task.sizes[2:]) * seconds >= 1
    assert torch.equal(task.layer.weight, before)


def test_the_speed_is_the_median_of_the_steps(clock: list[float]) -> None:
    class Uneven(Timed):
        def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
            self.seconds = (0.01, 0.01, 0.03, 0.05, 0.01)[min(len(self.sizes), 4)]
            return super().forward(batch, rng)

    assert estimate.measure(Uneven(clock, 0), images(40), CPU, PLAIN_SGD, 32, 2**30).images_per_second == pytest.approx(
        1 / 0.03
    )


@pytest.mark.parametrize(("optimizer", "states"), [(PLAIN_SGD, 0), (ADAMW, 2 * 4 * HALF)])
@pytest.mark.parametrize("batch_size", [16, 64])
def test_memory_is_weights_gradients_states_and_activations(
    optimizer: Any, states: int, batch_size: int, clock: list[float]
) -> None:
    """The activations are the input of the layer, 192 floats per image."""
    task = Timed(clock, 0.01)
    task.frozen = nn.Linear(50, 50).requires_grad_(False)
    result = estimate.measure(task, images(200), CPU, optimizer, batch_size, 2**30)
    expected = 2 * 4 * HALF + states + batch_size * 192 * 4
    assert expected <= result.bytes <= expected + 200  # the step count of Adam, and scalars


def test_labels_belong_to_the_measured_images(clock: list[float]) -> None:
    class Checked(Timed):
        def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
            assert torch.equal((batch["images"][:, 0, 0, 0] * 255).round().long(), batch["labels"])
            return super().forward(batch, rng)

    task = Checked(clock, 0.1)
    estimate.measure(task, images(50), CPU, PLAIN_SGD, 8, 2**30, torch.arange(50))
    assert len({tuple(labels.tolist()) for labels in task.labels if labels is not None}) > 3


def test_finetuning_takes_the_regressions_the_trainings_in_folds_and_a_final_one() -> None:
    """Of three folds, one of two cores has two; a fold has one thread."""
    times = ClassifierEstimate(100.0, 80.0, at_once=2, probe=7.0, labels=30, validation=0, folds=[17, 18, 18])
    settings = Training(**{**SETTINGS, "batch_size": 20, "evaluations": 4})
    workers = estimate.WORKERS
    assert times.finetuning(settings, 50, 1) == pytest.approx(7 + workers + 50 * (2 * 18 / 80 + 20 / 100))
    assert times.finetuning(settings, 50, 2) == pytest.approx(7 + workers + 50 * (3 * 18 / 80 + 20 / 100))
    alone = replace(times, at_once=1)  # in this process
    assert alone.finetuning(settings, 50, 1) == pytest.approx(7 + 50 * (3 * 18 / 80 + 20 / 100))
    small = replace(times, labels=12, folds=[])  # one label a class: no folds
    assert small.finetuning(settings, 50, 2) == pytest.approx(7 + 50 * 12 / 100)
    with_val = replace(times, validation=3, folds=[30])
    evaluations = 1 + settings.with_affordable_evaluations(1000, 3).evaluations
    forward = round(evaluations * 3 * estimate.FORWARD_COST)
    assert with_val.finetuning(settings, 50, 1) == pytest.approx(7 + (50 * 20 + forward) / 100)
    expected = 7 + workers + 50 * 20 / 80 + (50 * 20 + forward) / 100
    assert with_val.finetuning(settings, 50, 2) == pytest.approx(expected)


def config() -> dict[str, Any]:
    keys = (key.removeprefix("device.").split("=") for key in QUICK[1:])
    device = {
        "_target_": "sslrun.device.Device",
        "name": "cpu",
        "compile": None,
        "deterministic": False,
        "threads": None,
        **dict(keys),
    }
    return {
        "device": device,
        "dataset": {"image_size": 8},
        "train": {"batch_size": 16},
        "backbone": {"_target_": "sslrun.models.backbones.smallcnn.smallcnn", "widths": [4, 8]},
        "augment": {"_target_": "sslrun.augment.Augment", **IDENTITY},
        "optimizer": PLAIN_SGD,
    }


def dataset(n: int) -> Dataset:
    rows = images(n).permute(0, 2, 3, 1).contiguous()
    return Dataset(
        Images([rows], np.zeros((n, 16), np.uint8)), torch.arange(n) % 3, ["a", "b", "c"], list(map(str, range(n)))
    )


@pytest.mark.parametrize("val", [None, 30])
def test_a_probe_takes_the_search_of_c_the_fit_and_the_features(
    val: int | None, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The measured regressions take 0.4 s on 25 labels. Each of five folds trains with 32 of 40 labels."""
    seen: dict[str, Any] = {}

    def measured(
        task: Any, images: Any, device: Device, optimizer: Any, batch_size: int, memory: int, y: Any, quick: bool
    ) -> Any:
        seen.update(task=task, images=len(images), batch_size=batch_size, labels=len(y))
        return Measurement(200.0, 0)

    def probabilities(job: FoldRegression) -> None:
        seen.update(fitted=(len(job.features), len(job.labels), job.classes))
        clock[0] += 0.4

    monkeypatch.setattr(estimate, "measure", measured)
    monkeypatch.setattr(FoldRegression, "probabilities", probabilities)
    monkeypatch.setattr(estimate, "REGRESSION_IMAGES", 25)
    data = dataset(60)
    with_val = dataset(val) if val else None
    labeled = Labeled(data, data.take(np.arange(40)), with_val, "extra" if val else "inside")
    result = estimate.classifier(config(), labeled)
    searched = (40 if val else 5 * 32) * estimate.BOTH_POOLINGS
    embedded = (40 + (val or 0)) * estimate.FORWARD_COST / 200
    assert result.probe == pytest.approx(2.5 + 0.4 / 25 * searched + embedded)
    assert (result.images_per_second, result.labels, result.validation) == (200, 40, val or 0)
    assert result.folds == ([40] if val else [26, 27, 27])
    assert (seen["images"], seen["labels"], seen["batch_size"]) == (60, 60, 16)
    assert seen["fitted"] == (25, 25, 3)
    assert isinstance(seen["task"].classifier, Classifier)
    assert seen["task"].classifier.encoder.pooling == "grid"
    assert seen["task"].classifier.head.out_features == 3


def test_a_pretraining_is_estimated_with_its_own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def measured(task: Any, images: Any, device: Device, optimizer: Any, batch_size: int, memory: int) -> Measurement:
        seen.update(task=task, n=len(images), optimizer=optimizer, batch_size=batch_size, memory=memory)
        return Measurement(123.0, 456)

    monkeypatch.setattr(estimate, "measure", measured)
    monkeypatch.setattr(estimate, "physical_memory", lambda: 789)
    c = config()
    pretext = {
        "_target_": "sslrun.tasks.pretext.rotation.Rotation", "augment": c["augment"], "copies": 4, "hidden_dim": None,
        "dropout": 0.0,
    }  # fmt: skip
    result = estimate.pretraining(dataset(20).images, pretext, c["backbone"], PLAIN_SGD, c["device"], 8, 5)
    if not torch.cuda.is_available():
        assert (result.images_per_second, result.bytes, result.memory) == (123.0, 456, 789)
    assert (seen["n"], seen["batch_size"], seen["optimizer"]) == (20, 5, PLAIN_SGD)
    assert (result.device.precision, result.device.memory_format) == ("fp32", "channels_last")
    assert type(seen["task"]).__name__ == "Rotation"
    assert seen["task"].encoder.channels == [4, 8]
    assert seen["task"].encoder.memory_format == torch.channels_last
