"""Relative patch location."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sslrun.base.errors import UserError
from sslrun.tasks.pretext.relative_patch import OFFSETS, adjacent
from sslrun.tasks.task import build_task
from tests.helpers import IDENTITY, make_task, node_of, rng, small_encoder


@pytest.mark.parametrize(("grid", "pairs"), [(2, 12), (3, 40)])
def test_all_adjacent_pairs_with_their_directions(grid: int, pairs: int) -> None:
    cells, directions = adjacent(grid)
    assert cells.shape == (pairs, 2)
    for (a, b), k in zip(cells.tolist(), directions.tolist(), strict=True):
        assert (b // grid - a // grid, b % grid - a % grid) == OFFSETS[k]
    assert len({tuple(c) for c in cells.tolist()}) == pairs
    assert set(directions.tolist()) == set(range(8))


def test_uniform_logits_have_the_loss_and_the_accuracy_of_chance(pieces: Tensor) -> None:
    """The directions have equal weights although some have more pairs."""
    task: Any = make_task("relative_patch").eval()
    with torch.no_grad():
        task.head[-1].weight.zero_()
        task.head[-1].bias.zero_()
        out = task({"images": pieces}, rng())
    assert float(out["loss"]) == pytest.approx(math.log(8), rel=1e-5)
    assert float(out["pretext_accuracy"]) == pytest.approx(1 / 8)


def test_the_pairs_are_tiles_of_the_same_image(pieces: Tensor) -> None:
    augment = {"_target_": "sslrun.augment.Augment", **IDENTITY}
    task: Any = make_task("relative_patch", gap=0.0, normalize_tiles=False, augment=augment)
    tiles = task._tiles(pieces, rng())
    for k, (y, x) in enumerate([(0, 0), (0, 16), (16, 0), (16, 16)]):
        assert torch.equal(tiles[:, k], pieces[:, :, y : y + 16, x : x + 16])


@pytest.mark.parametrize("name", ["relative_patch", "jigsaw"])
def test_tiles_too_small_are_one_line(name: str) -> None:
    with pytest.raises(Exception, match=r"tiles of 3 px are too small, at least 4 px are needed: use") as error:
        make_task(name, grid=3, gap=0.7)
    settings = "dataset.image_size=36 or pretext.gap=0.6 or pretext.grid=2"
    assert str(error.value).endswith(f"use {settings}")
    make_task(name, grid=3, gap=0.6)  # as advised
    make_task(name, grid=2, gap=0.7)
    node = node_of(name, grid=3, gap=0.7)
    build_task(node, small_encoder(), 36)
    with pytest.raises(UserError, match=r"dataset\.image_size=36 or"):
        build_task(node, small_encoder(), 35)


def test_directions_have_equal_weights(pieces: Tensor) -> None:
    """A 3 x 3 grid has 6 pairs of each straight direction, and 4 of each diagonal one."""
    task: Any = make_task("relative_patch", grid=3).eval()
    logits = rng(1).randn(4 * len(task.directions), 8)
    task.head.forward = lambda x: logits
    out = task({"images": pieces[:4]}, rng())
    directions = task.directions.repeat(4)
    losses = -logits.log_softmax(1)[torch.arange(len(logits)), directions]
    naive = torch.stack([losses[directions == k].mean() for k in range(8)]).mean()
    assert float(out["loss"]) == pytest.approx(float(naive), rel=1e-4)
    hits = (logits.argmax(1) == directions).float()
    accuracy = torch.stack([hits[directions == k].mean() for k in range(8)]).mean()
    assert float(out["pretext_accuracy"]) == pytest.approx(float(accuracy), rel=1e-4)
