"""Novelty: distances to the nearest training image in standardized means of the feature maps."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sslrun.base.errors import UserError
from sslrun.evaluation.novelty import Novelty


def maps(n: int, seed: int = 0) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [10 * torch.randn(n, 4, generator=rng) + 3, 0.1 * torch.randn(n, 8, generator=rng)]


def naive(queries: list[Tensor], bank: list[Tensor]) -> np.ndarray:
    """Return all distances; each map contributes the mean over its channels of squared standard scores."""
    squared = np.zeros((len(queries[0]), len(bank[0])))
    for q, b in zip(queries, bank, strict=True):
        mean, sd = b.numpy().mean(0), b.numpy().std(0, ddof=1)
        scores = ((x.numpy() - mean) / sd for x in (q, b))
        for i, j, a, c in (
            (i, j, a, c) for qs, bs in [tuple(scores)] for i, a in enumerate(qs) for j, c in enumerate(bs)
        ):
            squared[i, j] += ((a - c) ** 2).mean()
    return np.asarray(np.sqrt(squared))


def test_the_distance_is_that_to_the_nearest_training_image() -> None:
    bank, queries = maps(20), maps(5, seed=1)
    novelty = Novelty.fitted(bank, None, None)
    assert novelty.distances(queries) == pytest.approx(naive(queries, bank).min(1), rel=1e-3)
    assert novelty.distances(bank) == pytest.approx(np.zeros(20), abs=2e-3)


def test_the_threshold_is_exceeded_by_one_percent_of_the_training_images() -> None:
    bank = maps(300)
    between = naive(bank, bank)
    np.fill_diagonal(between, np.inf)
    nearest = between.min(1)
    threshold = Novelty.fitted(bank, None, None).threshold
    assert threshold == pytest.approx(np.sort(nearest)[-3], rel=1e-3)
    assert (nearest > threshold * 1.001).sum() == 2


def test_images_of_a_group_are_not_neighbors() -> None:
    bank = [torch.cat([m, m + 1e-3]) for m in maps(20)]
    groups = np.array([f"g{i % 20}" for i in range(40)])
    assert Novelty.fitted(bank, None, None).threshold < 0.1
    assert Novelty.fitted(bank, groups, None).threshold > 0.5
    assert Novelty.fitted(bank, np.array(["one"] * 40), None).threshold == np.inf  # nothing is known: nothing is marked


def test_images_without_a_neighbor_of_their_class_do_not_set_the_threshold() -> None:
    bank = maps(30)
    bank[0][20:] += 200
    labels = torch.tensor([0] * 20 + [1] * 10)
    groups = np.array([*range(20), *[99] * 10])
    far = Novelty.fitted(bank, groups, None).threshold
    assert Novelty.fitted(bank, groups, None, labels).threshold < far / 2


def test_validation_images_set_the_threshold() -> None:
    bank, val = maps(50), maps(20, seed=2)
    threshold = Novelty.fitted(bank, None, val).threshold
    assert threshold == pytest.approx(naive(val, bank).min(1).max(), rel=1e-3)


def test_copies_are_not_neighbors_and_say_nothing_of_other_images() -> None:
    bank = [torch.cat([m, m]) for m in maps(30)]
    once = Novelty.fitted([m[:30] for m in bank], None, None)
    assert Novelty.fitted(bank, None, None).threshold == pytest.approx(once.threshold, rel=0.05)
    same = [torch.ones(10, 4), torch.zeros(10, 2)]
    novelty = Novelty.fitted(same, None, None)
    assert novelty.threshold == np.inf
    novelty.save(Path("none.npz"))
    assert not Path("none.npz").exists()


def test_a_channel_that_is_constant_in_training_does_not_decide_alone() -> None:
    bank = [torch.cat([m, torch.zeros(len(m), 1)], 1) for m in maps(100)]
    novelty = Novelty.fitted(bank, None, None)
    other = [m[:1].clone() for m in bank]
    other[0][0, -1] = 1e-2  # where the other channels have an SD of 10
    assert novelty.distances(other)[0] < 0.1 * novelty.threshold
    other[0][0, -1] = 1e3
    assert novelty.distances(other)[0] > novelty.threshold


def test_it_is_the_same_from_its_file() -> None:
    bank, queries, path = maps(50), maps(5, seed=1), Path("novelty.npz")
    novelty = Novelty.fitted(bank, None, None)
    novelty.save(path)
    loaded = Novelty.load(path)
    assert loaded.threshold == novelty.threshold
    assert loaded.distances(queries) == pytest.approx(novelty.distances(queries), rel=1e-2)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"novelty\.npz cannot be read"):
        Novelty.load(path)
