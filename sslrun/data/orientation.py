"""What the pixels of a data set say: grey, blank, and whether images have a canonical orientation.

Everything here reads; nothing here decides. `report/check.py` makes sentences of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslrun.base.machine import one_thread
from sslrun.data.duplicates import BLANK
from sslrun.data.images import Images

GRAY = 2  # largest difference of the channels, of 255, in a grey picture
SAMPLE, SIDE = 2000, 32  # pictures, and their px, for what is estimated from a sample
MIN_IMAGES = 50  # pictures to tell from whether they have an up


def sample(images: Images, seed: int = 0) -> Tensor:
    """Return at most 2,000 of the pictures at 32 px, `n x 3 x 32 x 32` in [0, 1]."""
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:SAMPLE]
    small = [
        F.interpolate(batch.float() / 255, (SIDE, SIDE), mode="bilinear", antialias=True)
        for batch in images.take(rows.numpy()).split(256)
    ]
    return torch.cat(small)


def gray_share(images: Tensor) -> float:
    """Return which part of `N x 3 x S x S` pictures in [0, 1] has no colour."""
    spread = images.amax(1) - images.amin(1)
    return float((spread.flatten(1).amax(1) <= GRAY / 255).float().mean())


def blank_share(images: Tensor) -> float:
    """Return which part of `N x 3 x S x S` pictures in [0, 1] shows nothing."""
    return float((images.std((2, 3)).amax(1) < BLANK / 255).float().mean())


def pixels(images: Tensor) -> dict[str, Any]:
    """Return what the pixels of `N x 3 x 32 x 32` pictures in [0, 1] say: grey, blank, and whether they have an up."""
    result = {"sampled": len(images), "gray": gray_share(images), "blank": blank_share(images)}
    return result | {"orientation": asdict(orientation(images)) if len(images) >= MIN_IMAGES else None}


@dataclass(frozen=True)
class Orientation:
    """How well a linear rule on edges and coarse colours tells, on pictures that it was not fitted to.

    Attributes:
        rotation: by how many quarter turns a picture was turned; chance is 0.25.
        errors_by_180: the part of all guesses that is wrong by a half turn.
        flip: whether a picture was mirrored; chance is 0.5.
        images: that it was tried on.
    """

    rotation: float
    errors_by_180: float
    flip: float
    images: int


def orientation(images: Tensor) -> Orientation:
    """Measure whether pictures, `N x 3 x 32 x 32` in [0, 1] in any order, have an up, and a left and right."""
    cut = len(images) * 3 // 4
    train, val = images[:cut], images[cut:]
    guess, truth = _predicted(train, val, [partial(torch.rot90, k=k, dims=(2, 3)) for k in range(4)])
    flip_guess, flip_truth = _predicted(train, val, [lambda x: x, lambda x: x.flip(3)])
    half = float(((guess - truth) % 4 == 2).mean())
    return Orientation(float((guess == truth).mean()), half, float((flip_guess == flip_truth).mean()), len(val))


def _predicted(
    train: Tensor, val: Tensor, changes: Sequence[Callable[[Tensor], Tensor]]
) -> tuple[np.ndarray, np.ndarray]:
    """Fit a linear rule that tells which change was made, and return its guesses on others, and the truth."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def all_of(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
        return np.concatenate([_edges_and_colors(c(x)) for c in changes]), np.repeat(range(len(changes)), len(x))

    rule = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
    with one_thread("blas"):
        rule.fit(*all_of(train))
    x, truth = all_of(val)
    return rule.predict(x), truth


def _edges_and_colors(x: Tensor) -> np.ndarray:
    """Return histograms of the gradient's direction in 4 x 4 cells (Dalal & Triggs 2005), and 6 x 6 mean colours."""
    gray = F.pad(x.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    dx, dy = gray[:, :, 1:-1, 2:] - gray[:, :, 1:-1, :-2], gray[:, :, 2:, 1:-1] - gray[:, :, :-2, 1:-1]
    direction = ((torch.atan2(dy, dx) / (2 * torch.pi) + 0.5) * 8).long().clamp(0, 7)
    edges = torch.zeros(len(x), 8, *dx.shape[2:]).scatter_(1, direction, (dx.square() + dy.square()).sqrt())
    edges = F.normalize(F.adaptive_avg_pool2d(edges, 4).flatten(1), dim=1)
    colors = F.adaptive_avg_pool2d(x, 6)
    return torch.cat([edges, (colors - colors.mean((1, 2, 3), keepdim=True)).flatten(1)], 1).numpy()
