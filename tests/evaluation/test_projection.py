"""Maps of embeddings depend on the directions of the features alone."""

import numpy as np

from sslrun.evaluation.projection import tsne


def test_the_length_of_the_features_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 4))
    scaled = x * 2.0 ** rng.integers(-4, 5, (12, 1))  # by powers of two, so that nothing is rounded
    assert np.array_equal(tsne(x, seed=0), tsne(scaled, seed=0))
