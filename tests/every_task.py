"""Every task, and finetuning, with a small network."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sslrun.augment import Augment
from sslrun.base.paths import CONF
from sslrun.models.classifier import Classifier
from sslrun.tasks.finetuning.supervised import Finetuning
from sslrun.tasks.pretext import distill
from sslrun.tasks.task import Task
from tests.helpers import IDENTITY, make_task, small_encoder

FINETUNING = "finetuning"
PRETEXT = sorted(p.stem for p in (CONF / "pretext").glob("*.yaml"))
IMAGES = 22  # that are distilled
CHANGES: dict[str, dict[str, Any]] = {"moco": {"queue": 20}, "swav": {"prototypes": 8}, "rotation": {"dropout": 0.3}}


def task_named(name: str) -> Task:
    torch.manual_seed(0)
    if name == "distill":
        return distillation()
    if name != FINETUNING:
        return make_task(name, **CHANGES.get(name, {}))
    classifier = Classifier(small_encoder(), 3)
    weights = torch.tensor([0.5, 1.0, 2.0])
    return Finetuning(classifier, Augment(**IDENTITY | {"grayscale": 0.5}), 0.1, 5, False, 0.5, class_weights=weights)


def distillation() -> Task:
    """Return a task with features of a teacher, as if it had been prepared."""
    teacher = SimpleNamespace(encoder=small_encoder(), origin={}, digest=lambda: "00" * 16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distill, "teacher_of", lambda *_: teacher)
        task = make_task("distill", components=4)
    assert isinstance(task, distill.Distill)
    task.features = np.random.default_rng(0).normal(size=(IMAGES, 32)).astype(np.float16)
    for buffer in (task.mean, task.directions, task.weight):
        buffer.copy_(torch.rand(buffer.shape))
    return task
