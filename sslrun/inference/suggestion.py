"""Which pictures to label first: typical and diverse ones (TypiClust, Hacohen et al. 2022)."""

import itertools
import warnings

import numpy as np

from sslrun.base.machine import one_thread

NEIGHBORS = 20  # by which typicality is told, as in the paper
GROUPS = 500  # at most, as in the paper
CLUSTERED = 20_000  # pictures, at most, by which the groups are found; the others join the nearest


def typical_and_diverse(features: np.ndarray, n: int, seed: int, labeled: np.ndarray | None = None) -> np.ndarray:
    """Choose pictures to label: of each of as many groups as there are labels, the one in the densest place.

    k-means on l2-normalised features makes as many groups as there are labels and choices together, but at most 500.
    Groups with the fewest labels come first, of these the largest; of each the picture is taken that lies nearest to
    its 20 nearest neighbours within the group, and where there are fewer groups than choices the next nearest in turn.

    Args:
        features: `N x D`.
        n: how many to choose.
        seed: of k-means, and of the pictures that it is given where there are more than 20,000.
        labeled: positions of pictures that have labels already.

    Returns:
        Positions of n pictures, or of all that are left, in the order in which they should be labeled.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    known = np.zeros(len(features), dtype=bool)
    known[labeled if labeled is not None else []] = True
    x = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    groups = min(n + int(known.sum()), GROUPS, len(x))
    some = np.random.default_rng(seed).permutation(len(x))[:CLUSTERED]
    with warnings.catch_warnings(), one_thread("openmp"):  # whose threads would stay beside torch's
        warnings.simplefilter("ignore", ConvergenceWarning)  # of pictures that are all alike
        means = KMeans(groups, n_init=1, random_state=seed).fit(x[some])
        group = means.predict(x)
    members = [np.flatnonzero(group == g) for g in range(groups)]
    order = sorted(members, key=lambda m: (int(known[m].sum()), -len(m)))
    ranked = [by_typicality(x, m[~known[m]]) for m in order]
    rounds = (r[i] for i in range(max(map(len, ranked))) for r in ranked if i < len(r))
    return np.array(list(itertools.islice(rounds, n)), dtype=int)


def by_typicality(x: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Return members of a group, those first whose nearest neighbours within it are nearest."""
    from sklearn.neighbors import NearestNeighbors

    k = min(NEIGHBORS, len(members) - 1)
    if k < 1:
        return members
    distances, _ = NearestNeighbors(n_neighbors=k).fit(x[members]).kneighbors()
    return members[np.argsort(distances.mean(1), kind="stable")]
