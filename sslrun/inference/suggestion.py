"""Suggestion of images to label first: typical and diverse ones (TypiClust, Hacohen et al. 2022)."""

import itertools
import warnings

import numpy as np

from sslrun.base.machine import one_thread

NEIGHBORS = 20  # for typicality, as in the paper
MAX_CLUSTERS = 500  # as in the paper
MAX_FITTED = 20_000  # images that k-means is fitted on; all others are assigned to the nearest cluster


def typical_and_diverse(features: np.ndarray, n: int, seed: int, labeled: np.ndarray | None = None) -> np.ndarray:
    """Choose images to label: from each cluster of the features, the most typical image.

    k-means on the l2-normalized features makes one cluster for each labeled and each chosen image, at most 500.
    Clusters are visited in ascending number of labels, then in descending size. From each, the image with the smallest
    mean distance to its 20 nearest neighbors within the cluster is chosen, and in further rounds the next ones.

    Args:
        features: `N x D`.
        n: number of images to choose.
        seed: for k-means, and for the sample that it is fitted on if there are more than 20,000 images.
        labeled: indices of images that are labeled already.

    Returns:
        Indices of n images, or of all unlabeled ones if these are fewer, in the order in which to label them.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    known = np.zeros(len(features), dtype=bool)
    known[labeled if labeled is not None else []] = True
    x = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    clusters = min(n + int(known.sum()), MAX_CLUSTERS, len(x))
    sample = np.random.default_rng(seed).permutation(len(x))[:MAX_FITTED]
    with warnings.catch_warnings(), one_thread("openmp"):  # its threads would compete with torch's
        warnings.simplefilter("ignore", ConvergenceWarning)  # raised for identical images
        kmeans = KMeans(clusters, n_init=1, random_state=seed).fit(x[sample])
        cluster = kmeans.predict(x)
    members = [np.flatnonzero(cluster == k) for k in range(clusters)]
    order = sorted(members, key=lambda m: (int(known[m].sum()), -len(m)))
    ranked = [by_typicality(x, m[~known[m]]) for m in order]
    rounds = (r[i] for i in range(max(map(len, ranked))) for r in ranked if i < len(r))
    return np.array(list(itertools.islice(rounds, n)), dtype=int)


def by_typicality(x: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Sort the members of a cluster by mean distance to their nearest neighbors within it, ascending."""
    from sklearn.neighbors import NearestNeighbors

    k = min(NEIGHBORS, len(members) - 1)
    if k < 1:
        return members
    distances, _ = NearestNeighbors(n_neighbors=k).fit(x[members]).kneighbors()
    return members[np.argsort(distances.mean(1), kind="stable")]
