"""Relative patch location."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sslrun.tasks.pretext.relative_patch import OFFSETS, adjacent
from tests.helpers import IDENTITY, make_task, rng


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
    with pytest.raises(Exception, match=r"tiles of 3 px are too small: use larger images, a coarser grid or a smaller"):
        make_task(name, grid=3, gap=0.7)


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
