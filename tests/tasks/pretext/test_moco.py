"""The queue of MoCo."""

import logging
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslrun.base.errors import UserError
from sslrun.tasks.pretext.moco import info_nce_logits
from tests.helpers import batch_of, make_task, rng
from tests.tasks.pretext.references import LIGHTLY, cosine, vectors


def test_the_oldest_keys_are_replaced(pieces: Tensor) -> None:
    task: Any = make_task("moco", queue=10, output_dim=4)
    begin, keys = task.queue.clone(), []
    for step in range(3):
        task(batch_of(pieces[:4]), rng(step))
        task.after_step(step, 3)
        keys.append(task.keys.clone())
    written = torch.cat(keys)  # 12 keys into 10 places
    assert torch.equal(task.queue[:2], written[10:])
    assert torch.equal(task.queue[2:], written[2:10])
    assert int(task.position) == 2
    assert not torch.equal(begin, task.queue)
    assert torch.allclose(task.queue.norm(dim=1), torch.ones(10), atol=1e-5)


def test_a_batch_larger_than_the_queue_fills_it_with_its_last_keys(pieces: Tensor) -> None:
    task: Any = make_task("moco", queue=5)
    task(batch_of(pieces[:8]), rng())
    task.after_step(0, 1)
    assert torch.equal(task.queue, task.keys[-5:])


def test_keys_come_from_the_teacher_as_it_was_and_the_loss_at_chance_is_ln_of_the_queue(pieces: Tensor) -> None:
    task: Any = make_task("moco", queue=50, temperature=1e6)
    assert task(batch_of(pieces[:8]), rng())["loss"].item() == pytest.approx(math.log(51), rel=1e-4)
    key = task.teacher.projector(task.teacher.encoder(task.views(pieces[:8], rng())["key"]))
    assert torch.allclose(torch.nn.functional.normalize(key, dim=1), task.keys, atol=1e-5)


@torch.no_grad()
def test_keys_of_the_own_image_do_not_count(pieces: Tensor) -> None:
    """As if they were not in the queue."""
    task: Any = make_task("moco", queue=10, temperature=0.2).eval()
    task.rows[3], task.rows[7] = 1, 5
    images = pieces[:4]
    loss = float(task(batch_of(images), rng())["loss"])
    views = task.views(images, rng())
    query, key = (
        F.normalize(z, dim=1) for z in (task.projector(task.encoder(views["query"])), task.teacher(views["key"]))
    )
    total = 0.0
    for i in range(4):
        positive = math.exp(float(query[i] @ key[i]) / 0.2)
        others = [math.exp(float(query[i] @ k) / 0.2) for j, k in enumerate(task.queue) if (i, j) != (1, 3)]
        total -= math.log(positive / (positive + sum(others)))
    assert loss == pytest.approx(total / 4, rel=1e-4)
    task.after_step(0, 1)
    assert task.rows.tolist() == [0, 1, 2, 3, -1, -1, -1, 5, -1, -1]


def test_the_queue_and_its_position_are_part_of_the_state() -> None:
    assert {"queue", "rows", "position"} <= make_task("moco").state_dict().keys()


def test_the_queue_fits_itself_to_the_data(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sslrun")
    task: Any = make_task("moco")
    task.set_sizes(100_000, 128)
    assert len(task.queue) == 4096
    assert not caplog.messages
    task.set_sizes(300, 128)
    assert len(task.queue) == 150
    assert caplog.messages == ["pretext.queue=auto is 150 keys, half of the images"]
    task = make_task("moco", queue=300)
    task.set_sizes(300, 128)
    with pytest.raises(UserError, match=r"pretext.queue=300 is longer than the data set: at most 299"):
        task.set_sizes(299, 128)


def test_the_loss() -> None:
    a, b, s, t = vectors()
    queue = F.normalize(torch.cat([s, t]), dim=1)
    logits = info_nce_logits(F.normalize(a, dim=1), F.normalize(b, dim=1), queue) / 0.2
    loss = float(logits.logsumexp(1).mean() - logits[:, 0].mean())
    total = 0.0
    for i in range(12):
        positive = math.exp(cosine(a[i], b[i]) / 0.2)
        total -= math.log(positive / (positive + sum(math.exp(cosine(a[i], k) / 0.2) for k in queue)))
    assert loss == pytest.approx(total / 12, rel=1e-5)
    assert loss == pytest.approx(LIGHTLY["moco"], rel=1e-5)
