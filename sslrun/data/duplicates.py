"""Exact and near duplicates.

The functions here only measure; they draw no conclusions.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from torch import Tensor

from sslrun.base.console import progress
from sslrun.data.decode import Header, read_headers
from sslrun.data.images import Images
from sslrun.data.workers import in_order, workers

SAME = 0.05  # largest distance between near duplicates' thumbnails, relative to their contrast
THUMBNAIL = 16  # px
PROJECTED = 20  # dimensions of the projection for the neighbor search
NEIGHBORS = 8  # per image
BLANK = 2.0  # standard deviation, of 255, below which an image is blank
SAMPLED = 5000  # images that the projection is fitted to


def headers(files: Sequence[str]) -> list[Header]:
    """Read the headers and hashes of image files on all cores."""
    result: list[Header] = []
    with workers(len(files)) as pool, progress("reading", len(files), "files") as advance:
        for chunk in in_order(pool, read_headers, (files[i : i + 64] for i in range(0, len(files), 64))):
            result += chunk
            advance(len(chunk))
    return result


def exact_duplicates(digests: Sequence[bytes]) -> list[list[int]]:
    """Return the groups of positions that have the same digest; an empty digest matches no other."""
    groups: dict[bytes, list[int]] = {}
    for i, digest in enumerate(digests):
        if digest:
            groups.setdefault(digest, []).append(i)
    return [g for g in groups.values() if len(g) > 1]


def near_duplicates(images: Images, test: np.ndarray | None = None) -> list[list[int]]:
    """Return groups of positions of images that differ by little more than compression, scale or brightness.

    Two images are near duplicates if their pixels are equal, or if their mean-centered 16 px thumbnails differ by less
    than 5 % of their contrast. Neighbors are searched in a 20-dimensional projection, which increases no distance: the
    8 nearest to each image, and the 8 nearest in the other split. So each image of a long burst is in some group, but
    a burst may be split into several groups. Blank images are skipped. Not detected are crops, shifts, strong
    compression of small images, and brightness changes that clip.

    Args:
        images: all images.
        test: whether each image is in the test split; by default none is.
    """
    if len(images) < 2:
        return []
    step = max(1, len(images) // SAMPLED)
    thumbnails = torch.cat([_thumbnails(batch)[0] for batch in images.take(np.arange(0, len(images), step)).split(512)])
    mean = thumbnails.mean(0)
    basis = torch.linalg.svd(thumbnails - mean, full_matrices=False)[2][:PROJECTED].T
    low, contrast = _projected(images, mean, basis)
    not_blank = np.flatnonzero(contrast > BLANK)
    is_test = np.zeros(len(images), dtype=bool) if test is None else test
    pixels = np.concatenate([images.digests[images.index.numpy()], is_test[:, None]], 1)[not_blank]
    _, first, group = np.unique(pixels, axis=0, return_index=True, return_inverse=True)
    rows = not_blank[np.sort(first)]  # one image per split of those with the same pixels
    train_rows, test_rows = rows[~is_test[rows]], rows[is_test[rows]]
    pairs = [
        _neighbors(low, rows, rows),
        _neighbors(low, test_rows, train_rows),
        _neighbors(low, train_rows, test_rows),
    ]
    a, b = np.concatenate([p[0] for p in pairs]), np.concatenate([p[1] for p in pairs])
    alike = [_alike(images, a[k : k + 512], b[k : k + 512]) for k in range(0, len(a), 512)]
    keep = np.concatenate([np.empty(0, dtype=bool), *alike])
    same = not_blank[first[group.ravel()]]  # for each image, the first one with the same pixels
    return _groups(np.concatenate([a[keep], same]), np.concatenate([b[keep], not_blank]), len(images))


def _neighbors(low: np.ndarray, queries: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of positions that may be near duplicates: one of the queries, and one of the candidates."""
    if not len(queries) or not len(candidates):
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    tree = cKDTree(low[candidates])
    distances, indices = tree.query(low[queries], k=NEIGHBORS + 1, distance_upper_bound=SAME, workers=-1)
    i, j = np.nonzero(np.isfinite(distances))
    a, b = queries[i], candidates[indices[i, j]]
    return a[a != b], b[a != b]


def _thumbnails(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean-centered thumbnails, `N x 768` with norm 1, and N standard deviations."""
    small = F.interpolate(images.float(), (THUMBNAIL, THUMBNAIL), mode="bilinear", antialias=True).flatten(1)
    small -= small.mean(1, keepdim=True)
    return F.normalize(small), small.std(1, unbiased=False)


def _projected(images: Images, mean: Tensor, basis: Tensor) -> tuple[np.ndarray, np.ndarray]:
    low = np.empty((len(images), basis.shape[1]), dtype=np.float32)
    contrast = np.empty(len(images), dtype=np.float32)
    done = 0
    with progress("comparing", len(images), "images") as advance:
        for batch in images.split(512):
            unit, deviation = _thumbnails(batch)
            low[done : done + len(batch)] = ((unit - mean) @ basis).numpy()
            contrast[done : done + len(batch)] = deviation.numpy()
            done += len(batch)
            advance(len(batch))
    return low, contrast


def _alike(images: Images, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return which of the pairs of positions are near duplicates."""
    (one, contrast), (other, contrasts) = (_thumbnails(images[torch.from_numpy(rows)]) for rows in (a, b))
    ratio = contrast / contrasts
    return ((one - other).norm(dim=1) < SAME).numpy() & ((ratio > 0.8) & (ratio < 1.25)).numpy()


def _groups(a: np.ndarray, b: np.ndarray, n: int) -> list[list[int]]:
    _, label = connected_components(coo_array((np.ones(len(a)), (a, b)), shape=(n, n)), directed=False)
    groups: dict[int, list[int]] = {}
    for i in np.unique(np.concatenate([a, b])).tolist():
        groups.setdefault(int(label[i]), []).append(i)
    return [g for g in groups.values() if len(g) > 1]
