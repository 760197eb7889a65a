"""Projection of embeddings to two dimensions."""

import numpy as np

from sslrun.base.machine import one_thread

SAME = 1e-6  # features that differ by less count as equal
PERPLEXITY = 30.0  # van der Maaten & Hinton 2008: 5 to 50


def tsne(features: np.ndarray, seed: int) -> np.ndarray:
    """Compute t-SNE, `N x 2`, of the l2-normalized features, `N x D`; Gaussian noise if all features are equal."""
    from sklearn.manifold import TSNE

    x = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    if len(x) < 3 or np.ptp(x, 0).max() < SAME:  # t-SNE fails on these, even with a segmentation fault
        return np.random.default_rng(seed).normal(size=(len(x), 2))
    init = "pca" if min(x.shape) >= 2 else "random"
    with one_thread("blas"):
        return TSNE(perplexity=min(PERPLEXITY, (len(x) - 1) / 3), random_state=seed, init=init).fit_transform(x)
