"""t-SNE depends only on the directions of the features."""

import numpy as np
import pytest
from sklearn.manifold import TSNE

from sslrun.evaluation.projection import tsne


def test_the_length_of_the_features_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 4))
    scaled = x * 2.0 ** rng.integers(-4, 5, (12, 1))  # powers of two are exact
    assert np.array_equal(tsne(x, seed=0), tsne(scaled, seed=0))


@pytest.mark.parametrize(
    ("shape", "perplexity", "init"), [((13, 4), 4.0, "pca"), ((120, 3), 30.0, "pca"), ((5, 1), 4 / 3, "random")]
)
def test_the_settings_of_tsne(
    shape: tuple[int, int], perplexity: float, init: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The perplexity is 30, or at most a third of the other images."""
    settings = []

    class Recorded(TSNE):
        def __init__(self, **keys: object) -> None:
            settings.append(keys)

        def fit_transform(self, x: np.ndarray) -> np.ndarray:
            return x[:, :2]

    monkeypatch.setattr("sklearn.manifold.TSNE", Recorded)
    x = np.random.default_rng(0).normal(size=shape)
    result = tsne(x, seed=7)
    assert settings == [{"perplexity": pytest.approx(perplexity), "random_state": 7, "init": init}]
    assert np.allclose(result, (x / np.linalg.norm(x, axis=1, keepdims=True))[:, :2])


@pytest.mark.parametrize("x", [np.ones((9, 4)), np.eye(2), np.zeros((3, 2))])
def test_equal_or_few_features_become_noise(x: np.ndarray) -> None:
    result = tsne(x, seed=0)
    assert result.shape == (len(x), 2)
    assert np.array_equal(result, tsne(x, seed=0))
    assert not np.array_equal(result, tsne(x, seed=1))
    assert len(np.unique(result)) == result.size
