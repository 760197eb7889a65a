"""Suggestions of typical and diverse images."""

import numpy as np
import pytest
from sklearn.cluster import KMeans

from sslrun.inference import suggestion
from sslrun.inference.suggestion import by_typicality, typical_and_diverse


def blobs(sizes: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return points in well-separated blobs, and the blob of each; the first point of a blob is its center."""
    rng = np.random.default_rng(seed)
    blob = np.repeat(np.arange(len(sizes)), sizes)
    centers = 10 * np.eye(len(sizes), 8)
    noise = rng.normal(size=(len(blob), 8))
    noise[np.unique(blob, return_index=True)[1]] = 0
    return centers[blob] + 0.5 * noise, blob


def test_one_of_each_blob_near_its_center_the_largest_first() -> None:
    x, blob = blobs([30, 60, 40, 50])
    chosen = typical_and_diverse(x, 4, seed=0)
    assert blob[chosen].tolist() == [1, 3, 2, 0]
    for i in chosen:
        others = np.flatnonzero(blob == blob[i])
        spread = np.linalg.norm(x[others] - x[others].mean(0), axis=1)
        assert spread[others == i] < np.median(spread)


def test_blobs_with_labels_come_last_and_no_image_twice() -> None:
    x, blob = blobs([30, 60, 40, 50])
    labeled = np.flatnonzero(np.isin(blob, (1, 3)))[::40]
    first = typical_and_diverse(x, 2, seed=0, labeled=labeled)
    assert sorted(blob[first]) == [0, 2]
    every = typical_and_diverse(x, 1000, seed=0, labeled=labeled)
    assert sorted([*every, *labeled]) == list(range(len(x)))
    assert len(set(typical_and_diverse(x, 100, seed=0))) == 100


def test_identical_and_few_images_are_no_error() -> None:
    assert len(set(typical_and_diverse(np.ones((30, 4)), 10, seed=0))) == 10
    assert typical_and_diverse(np.ones((3, 4)), 10, seed=0).tolist() == [0, 1, 2]
    assert typical_and_diverse(np.zeros((5, 4)), 1, seed=0).shape == (1,)


def test_more_choices_than_clusters_are_made_in_rounds() -> None:
    x, _ = blobs([300] * 4)
    chosen = typical_and_diverse(x, 700, seed=0)
    assert len(set(chosen)) == 700
    assert len(set(chosen[: suggestion.MAX_CLUSTERS])) == suggestion.MAX_CLUSTERS


def test_the_length_of_the_features_does_not_matter() -> None:
    """Bright and dark images of an object may differ only in length."""
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(5, 8)), [40, 10, 30, 20, 50], axis=0) + 0.3 * rng.normal(size=(150, 8))
    scaled = x * 2.0 ** rng.integers(-4, 5, (150, 1))  # powers of two are exact
    for n in (3, 5, 12):
        assert typical_and_diverse(scaled, n, seed=0).tolist() == typical_and_diverse(x, n, seed=0).tolist()


def test_the_typical_images_have_the_smallest_mean_distance_to_their_20_nearest_neighbors() -> None:
    x = np.random.default_rng(0).normal(size=(60, 2)) * [[1, 3]]
    members = np.arange(10, 55)
    mean = {}
    for i in members:
        distances = sorted(np.linalg.norm(x[i] - x[j]) for j in members if j != i)
        mean[i] = np.mean(distances[:20])
    assert by_typicality(x, members).tolist() == sorted(members, key=lambda i: mean[i])
    assert by_typicality(x, members[:1]).tolist() == [10]
    few = members[:4]
    within = {i: np.mean([np.linalg.norm(x[i] - x[j]) for j in few if j != i]) for i in few}
    assert by_typicality(x, few).tolist() == sorted(few, key=lambda i: within[i])


def test_k_means_has_the_seed_and_a_cluster_for_each_labeled_and_each_chosen_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is fitted on a sample, if there are many images, and all images are assigned to a cluster."""
    fitted, settings = [], []

    class Recorded(KMeans):
        def __init__(self, n_clusters: int, n_init: int, random_state: int) -> None:
            super().__init__(n_clusters, n_init=n_init, random_state=random_state)
            settings.append((n_clusters, random_state))

        def fit(self, x: np.ndarray) -> KMeans:
            fitted.append(x)
            return super().fit(x)

    monkeypatch.setattr("sklearn.cluster.KMeans", Recorded)
    monkeypatch.setattr(suggestion, "MAX_FITTED", 30)
    x, _ = blobs([20, 20, 20])
    for seed in (0, 1):
        chosen = typical_and_diverse(x, 2, seed=seed, labeled=np.array([0, 20, 40]))
        assert len(set(chosen)) == 2
        assert not {0, 20, 40} & set(chosen.tolist())
    assert settings == [(5, 0), (5, 1)]
    monkeypatch.undo()
    assert suggestion.MAX_FITTED == 20_000
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    rows = [{int(np.abs(unit - row).sum(1).argmin()) for row in sample} for sample in fitted]
    assert [len(r) for r in rows] == [30, 30]
    assert rows[0] != rows[1]
    assert all(max(r) > 40 for r in rows)
