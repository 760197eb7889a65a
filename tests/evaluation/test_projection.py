"""t-SNE depends only on the directions of the features."""

import numpy as np

from sslrun.evaluation.projection import tsne


def test_the_length_of_the_features_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 4))
    scaled = x * 2.0 ** rng.integers(-4, 5, (12, 1))  # powers of two are exact
    assert np.array_equal(tsne(x, seed=0), tsne(scaled, seed=0))
