"""Which pictures to label first: typical and diverse ones (TypiClust, Hacohen et al. 2022)."""

import warnings

import numpy as np

NEIGHBOURS = 20  # by which typicality is told, as in the paper
CLUSTERED = 20_000  # pictures, at most, by which the groups are found; the others join the nearest


def typical_and_diverse(features: np.ndarray, n: int, seed: int, labelled: np.ndarray | None = None) -> np.ndarray:
    """Choose pictures to label: of each of as many groups as there are labels, the one in the densest place.

    k-means on l2-normalised features makes as many groups as there are labels and choices together. Groups that have a
    label already are passed over, the largest of the others come first, and of each the picture that lies nearest to
    its 20 nearest neighbours within the group is taken.

    Args:
        features: `N x D`.
        n: how many to choose.
        seed: of k-means, and of the pictures that it is given where there are more than 20,000.
        labelled: positions of pictures that have labels already.

    Returns:
        Positions of n pictures, or of all that are left, those of the largest groups first.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    known = np.zeros(len(features), dtype=bool)
    known[labelled if labelled is not None else []] = True
    left = np.flatnonzero(~known)
    if len(left) <= n:
        return left
    x = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    groups = min(n + int(known.sum()), len(x))
    some = np.random.default_rng(seed).permutation(len(x))[: max(CLUSTERED, 2 * groups)]
    with warnings.catch_warnings(), threadpool_limits(1, "openmp"):  # whose threads would stay beside torch's
        warnings.simplefilter("ignore", ConvergenceWarning)  # of pictures that are all alike
        means = KMeans(groups, n_init=1, random_state=seed).fit(x[some])
        group = means.predict(x)
    sizes = np.bincount(group, minlength=groups)
    order = sorted(range(groups), key=lambda g: (bool(known[group == g].any()), -sizes[g]))
    chosen = [_most_typical(x, np.flatnonzero((group == g) & ~known)) for g in order if (~known[group == g]).any()]
    rest = np.setdiff1d(left, chosen)
    return np.array([*chosen, *rest][:n])


def _most_typical(x: np.ndarray, members: np.ndarray) -> int:
    """Return the member whose nearest neighbours among them are nearest."""
    from sklearn.neighbors import NearestNeighbors

    k = min(NEIGHBOURS, len(members) - 1)
    if k < 1:
        return int(members[0])
    distances, _ = NearestNeighbors(n_neighbors=k).fit(x[members]).kneighbors()
    return int(members[distances.mean(1).argmin()])
