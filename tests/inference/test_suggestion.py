"""Which images are typical and diverse."""

import numpy as np

from sslrun.inference.suggestion import typical_and_diverse


def heaps(sizes: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return points around far-away centres, which heap each is of; the first of a heap lies at its centre."""
    rng = np.random.default_rng(seed)
    heap = np.repeat(np.arange(len(sizes)), sizes)
    centres = 10 * np.eye(len(sizes), 8)
    noise = rng.normal(size=(len(heap), 8))
    noise[np.unique(heap, return_index=True)[1]] = 0
    return centres[heap] + 0.5 * noise, heap


def test_one_of_each_heap_the_largest_first_from_its_middle() -> None:
    x, heap = heaps([30, 60, 40, 50])
    chosen = typical_and_diverse(x, 4, seed=0)
    assert heap[chosen].tolist() == [1, 3, 2, 0]
    for i in chosen:
        others = np.flatnonzero(heap == heap[i])
        spread = np.linalg.norm(x[others] - x[others].mean(0), axis=1)
        assert spread[others == i] < np.median(spread)


def test_heaps_with_labels_come_last_and_no_picture_twice() -> None:
    x, heap = heaps([30, 60, 40, 50])
    labeled = np.flatnonzero(np.isin(heap, (1, 3)))[::40]
    first = typical_and_diverse(x, 2, seed=0, labeled=labeled)
    assert sorted(heap[first]) == [0, 2]
    every = typical_and_diverse(x, 1000, seed=0, labeled=labeled)
    assert sorted([*every, *labeled]) == list(range(len(x)))
    assert len(set(typical_and_diverse(x, 100, seed=0))) == 100


def test_equal_pictures_and_few_of_them_are_no_trouble() -> None:
    assert len(set(typical_and_diverse(np.ones((30, 4)), 10, seed=0))) == 10
    assert typical_and_diverse(np.ones((3, 4)), 10, seed=0).tolist() == [0, 1, 2]
    assert typical_and_diverse(np.zeros((5, 4)), 1, seed=0).shape == (1,)


def test_more_choices_than_groups_take_turns() -> None:
    from sslrun.inference import suggestion

    x, _ = heaps([300] * 4)
    chosen = typical_and_diverse(x, 700, seed=0)
    assert len(set(chosen)) == 700
    assert len(set(chosen[: suggestion.GROUPS])) == suggestion.GROUPS


def test_the_length_of_the_features_does_not_matter() -> None:
    """As of bright and dark images of one thing."""
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(5, 8)), [40, 10, 30, 20, 50], axis=0) + 0.3 * rng.normal(size=(150, 8))
    scaled = x * 2.0 ** rng.integers(-4, 5, (150, 1))  # by powers of two, so that nothing is rounded
    for n in (3, 5, 12):
        assert typical_and_diverse(scaled, n, seed=0).tolist() == typical_and_diverse(x, n, seed=0).tolist()
