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

GREY = 2  # largest difference of the channels, of 255, in a grey picture
LOOKED_AT, SMALL = 2000, 32  # pictures, and their px, for what is estimated from a sample
ENOUGH = 50  # pictures to tell from whether they have an up


def sample(images: Images, seed: int = 0) -> Tensor:
    """Return at most 2,000 of the pictures at 32 px, `n x 3 x 32 x 32` in [0, 1]."""
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:LOOKED_AT]
    small = [
        F.interpolate(batch.float() / 255, (SMALL, SMALL), mode="bilinear", antialias=True)
        for batch in images.take(rows.numpy()).split(256)
    ]
    return torch.cat(small)


def grey_share(pictures: Tensor) -> float:
    """Return which part of `N x 3 x S x S` pictures in [0, 1] has no colour."""
    spread = pictures.amax(1) - pictures.amin(1)
    return float((spread.flatten(1).amax(1) <= GREY / 255).float().mean())


def blank_share(pictures: Tensor) -> float:
    """Return which part of `N x 3 x S x S` pictures in [0, 1] shows nothing."""
    return float((pictures.std((2, 3)).amax(1) < BLANK / 255).float().mean())


def pixels(pictures: Tensor) -> dict[str, Any]:
    """Return what the pixels of `N x 3 x 32 x 32` pictures in [0, 1] say: grey, blank, and whether they have an up."""
    found = {"looked_at": len(pictures), "grey": grey_share(pictures), "blank": blank_share(pictures)}
    return found | {"orientation": asdict(orientation(pictures)) if len(pictures) >= ENOUGH else None}


@dataclass(frozen=True)
class Orientation:
    """How well a linear rule on edges and coarse colours tells, on pictures that it was not fitted to.

    Attributes:
        turn: by how many quarter turns a picture was turned; chance is 0.25.
        half_turn_errors: the part of all guesses that is wrong by a half turn.
        mirror: whether a picture was mirrored; chance is 0.5.
        pictures: that it was tried on.
    """

    turn: float
    half_turn_errors: float
    mirror: float
    pictures: int


def orientation(pictures: Tensor) -> Orientation:
    """Measure whether pictures, `N x 3 x 32 x 32` in [0, 1] in any order, have an up, and a left and right."""
    cut = len(pictures) * 3 // 4
    train, held = pictures[:cut], pictures[cut:]
    guess, truth = _told(train, held, [partial(torch.rot90, k=k, dims=(2, 3)) for k in range(4)])
    mirrored, sides = _told(train, held, [lambda x: x, lambda x: x.flip(3)])
    half = float(((guess - truth) % 4 == 2).mean())
    return Orientation(float((guess == truth).mean()), half, float((mirrored == sides).mean()), len(held))


def _told(train: Tensor, held: Tensor, changes: Sequence[Callable[[Tensor], Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    """Fit a linear rule that tells which change was made, and return its guesses on others, and the truth."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def all_of(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
        return np.concatenate([_edges_and_colours(c(x)) for c in changes]), np.repeat(range(len(changes)), len(x))

    rule = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
    with one_thread("blas"):
        rule.fit(*all_of(train))
    x, truth = all_of(held)
    return rule.predict(x), truth


def _edges_and_colours(x: Tensor) -> np.ndarray:
    """Return histograms of the gradient's direction in 4 x 4 cells (Dalal & Triggs 2005), and 6 x 6 mean colours."""
    grey = F.pad(x.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    dx, dy = grey[:, :, 1:-1, 2:] - grey[:, :, 1:-1, :-2], grey[:, :, 2:, 1:-1] - grey[:, :, :-2, 1:-1]
    direction = ((torch.atan2(dy, dx) / (2 * torch.pi) + 0.5) * 8).long().clamp(0, 7)
    edges = torch.zeros(len(x), 8, *dx.shape[2:]).scatter_(1, direction, (dx.square() + dy.square()).sqrt())
    edges = F.normalize(F.adaptive_avg_pool2d(edges, 4).flatten(1), dim=1)
    colours = F.adaptive_avg_pool2d(x, 6)
    return torch.cat([edges, (colours - colours.mean((1, 2, 3), keepdim=True)).flatten(1)], 1).numpy()
