"""Files that lie there twice, exactly or nearly, and what else lies beside them.

Everything here reads; nothing here decides. `report/check.py` makes sentences of it.
"""

import os
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from torch import Tensor

from sslrun.base.console import progress
from sslrun.data.decode import Header, is_image, read_headers
from sslrun.data.images import Images
from sslrun.data.workers import in_order, workers

SAME = 0.05  # largest distance of near duplicates' thumbnails, as a part of their contrast
THUMBNAIL = 16  # px
PROJECTED = 20  # dimensions in which neighbours are looked for
NEIGHBORS = 8  # looked at for each picture
BLANK = 2.0  # standard deviation, of 255, below which a picture shows nothing
SAMPLED = 5000  # pictures that the projection is found on


def headers(files: Sequence[str]) -> list[Header]:
    """Read every file and the header of the picture in it, on all cores."""
    result: list[Header] = []
    with workers(len(files)) as pool, progress("reading", len(files), "files") as advance:
        for chunk in in_order(pool, read_headers, (files[i : i + 64] for i in range(0, len(files), 64))):
            result += chunk
            advance(len(chunk))
    return result


def other_files(folder: str) -> dict[str, int]:
    """Count the files below a folder that are not taken for pictures, by their suffix."""
    result: Counter[str] = Counter()
    for _, dirs, names in os.walk(folder):
        dirs[:] = [d for d in dirs if not d.startswith(".")]
        result.update(os.path.splitext(n)[1].lower() for n in names if not n.startswith(".") and not is_image(n))
    return dict(result.most_common())


def exact_duplicates(digests: Sequence[bytes]) -> list[list[int]]:
    """Return the groups of positions that have the same digest; an empty digest is like no other."""
    groups: dict[bytes, list[int]] = {}
    for i, digest in enumerate(digests):
        if digest:
            groups.setdefault(digest, []).append(i)
    return [g for g in groups.values() if len(g) > 1]


def near_duplicates(images: Images, test: np.ndarray | None = None) -> list[list[int]]:
    """Return groups of positions of pictures that differ by little more than compression, scale or brightness.

    Two pictures are near duplicates if their 16 px thumbnails, less their mean, differ by less than 5 % of their
    contrast; those with the same pixels are. Neighbours are looked for in a 20-dimensional projection, which makes no
    distance larger: the 8 nearest of each, and the 8 nearest on the other side of training and test, so that in a long
    burst each picture has its group, though a burst may be several groups. Blank pictures are left out. Crops, shifts,
    strong compression of small pictures, and brightness that clips are not found.

    Args:
        images: all pictures.
        test: whether each is of the test split.
    """
    if len(images) < 2:
        return []
    step = max(1, len(images) // SAMPLED)
    some = torch.cat([_thumbnails(batch)[0] for batch in images.take(np.arange(0, len(images), step)).split(512)])
    mean = some.mean(0)
    basis = torch.linalg.svd(some - mean, full_matrices=False)[2][:PROJECTED].T
    low, contrast = _projected(images, mean, basis)
    shown = np.flatnonzero(contrast > BLANK)
    side = np.zeros(len(images), dtype=bool) if test is None else test
    pixels = np.concatenate([images.digests[images.index.numpy()], side[:, None]], 1)[shown]
    _, first, of = np.unique(pixels, axis=0, return_index=True, return_inverse=True)
    rows = shown[np.sort(first)]  # of pictures with the same pixels, one for each side
    pairs = [_neighbors(low, rows, rows), _neighbors(low, rows[side[rows]], rows[~side[rows]]),
             _neighbors(low, rows[~side[rows]], rows[side[rows]])]  # fmt: skip
    a, b = np.concatenate([p[0] for p in pairs]), np.concatenate([p[1] for p in pairs])
    alike = [_alike(images, a[k : k + 512], b[k : k + 512]) for k in range(0, len(a), 512)]
    keep = np.concatenate([np.empty(0, dtype=bool), *alike])
    same = shown[first[of.ravel()]]  # for each picture that is shown, the first with its pixels
    return _groups(np.concatenate([a[keep], same]), np.concatenate([b[keep], shown]), len(images))


def _neighbors(low: np.ndarray, of: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of positions that may be near duplicates, the first `of` these, the second `among` those."""
    if not len(of) or not len(among):
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    tree = cKDTree(low[among])
    distances, indices = tree.query(low[of], k=NEIGHBORS + 1, distance_upper_bound=SAME, workers=-1)
    i, j = np.nonzero(np.isfinite(distances))
    a, b = of[i], among[indices[i, j]]
    return a[a != b], b[a != b]


def _thumbnails(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return thumbnails less their means, `N x 768` of length 1, and N standard deviations."""
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
    """Tell which pairs of positions are near duplicates."""
    (one, contrast), (other, contrasts) = (_thumbnails(images[torch.from_numpy(rows)]) for rows in (a, b))
    ratio = contrast / contrasts
    return ((one - other).norm(dim=1) < SAME).numpy() & ((ratio > 0.8) & (ratio < 1.25)).numpy()


def _groups(a: np.ndarray, b: np.ndarray, n: int) -> list[list[int]]:
    _, label = connected_components(coo_array((np.ones(len(a)), (a, b)), shape=(n, n)), directed=False)
    groups: dict[int, list[int]] = {}
    for i in np.unique(np.concatenate([a, b])).tolist():
        groups.setdefault(int(label[i]), []).append(i)
    return [g for g in groups.values() if len(g) > 1]
