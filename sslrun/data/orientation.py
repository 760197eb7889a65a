"""Grayscale and blank images, and whether images have a canonical orientation.

The functions here only measure; they draw no conclusions.
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

GRAY = 2  # largest difference between channels, of 255, in a grayscale image
SAMPLE, SIDE = 2000, 32  # number of images in the sample, and their size in px
MIN_IMAGES = 50  # fewer are too few to measure their orientation


def sample(images: Images, seed: int = 0, groups: Sequence[str] | None = None) -> Tensor:
    """Return up to 2,000 random images, resized to 32 px, `n x 3 x 32 x 32` in [0, 1].

    Args:
        groups: name of the group of each image; those of one group then follow one another.
    """
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:SAMPLE]
    if groups is not None:
        first: dict[str, int] = {}  # position of the first image of each group
        rows = rows[np.argsort([first.setdefault(groups[i], k) for k, i in enumerate(rows.tolist())], kind="stable")]
    small = [
        F.interpolate(batch.float() / 255, (SIDE, SIDE), mode="bilinear", antialias=True)
        for batch in images.take(rows.numpy()).split(256)
    ]
    return torch.cat(small)


def gray_share(images: Tensor) -> float:
    """Return the fraction of images, `N x 3 x S x S` in [0, 1], that are grayscale."""
    spread = images.amax(1) - images.amin(1)
    return float((spread.flatten(1).amax(1) <= GRAY / 255).float().mean())


def blank_share(images: Tensor) -> float:
    """Return the fraction of images, `N x 3 x S x S` in [0, 1], that are blank."""
    return float((images.std((2, 3)).amax(1) < BLANK / 255).float().mean())


def pixels(images: Tensor) -> dict[str, Any]:
    """Return the grayscale and blank fractions and the orientation of images, `N x 3 x 32 x 32` in [0, 1]."""
    result = {"sampled": len(images), "gray": gray_share(images), "blank": blank_share(images)}
    return result | {"orientation": asdict(orientation(images)) if len(images) >= MIN_IMAGES else None}


@dataclass(frozen=True)
class Orientation:
    """Validation accuracy of linear classifiers that predict the rotation or flip from edges and coarse colors.

    Attributes:
        rotation: accuracy of predicting the rotation by 0, 90, 180 or 270 degrees; chance is 0.25.
        errors_by_180: fraction of all these predictions that are off by 180 degrees.
        flip: accuracy of predicting the horizontal flip; chance is 0.5.
        images: number of validation images.
    """

    rotation: float
    errors_by_180: float
    flip: float
    images: int


def orientation(images: Tensor) -> Orientation:
    """Measure how well rotations and horizontal flips of images, `N x 3 x 32 x 32` in [0, 1], can be recognized.

    The images, or their groups, must be shuffled: the first three quarters are for fitting, the last for validation.
    """
    cut = len(images) * 3 // 4
    train, val = images[:cut], images[cut:]
    rotation, true_rotation = _predicted(train, val, [partial(torch.rot90, k=k, dims=(2, 3)) for k in range(4)])
    flip, true_flip = _predicted(train, val, [lambda x: x, lambda x: x.flip(3)])
    return Orientation(
        rotation=float((rotation == true_rotation).mean()),
        errors_by_180=float(((rotation - true_rotation) % 4 == 2).mean()),
        flip=float((flip == true_flip).mean()),
        images=len(val),
    )


def _predicted(
    train: Tensor, val: Tensor, transforms: Sequence[Callable[[Tensor], Tensor]]
) -> tuple[np.ndarray, np.ndarray]:
    """Fit a linear classifier of the applied transform; return its predictions on validation, and the true values."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def examples(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
        return np.concatenate([_edges_and_colors(t(x)) for t in transforms]), np.repeat(range(len(transforms)), len(x))

    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
    with one_thread("blas"):
        classifier.fit(*examples(train))
    x, truth = examples(val)
    return classifier.predict(x), truth


def _edges_and_colors(x: Tensor) -> np.ndarray:
    """Return histograms of gradient directions in 4 x 4 cells (Dalal & Triggs 2005), and 6 x 6 mean colors."""
    gray = F.pad(x.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    dx, dy = gray[:, :, 1:-1, 2:] - gray[:, :, 1:-1, :-2], gray[:, :, 2:, 1:-1] - gray[:, :, :-2, 1:-1]
    direction = ((torch.atan2(dy, dx) / (2 * torch.pi) + 0.5) * 8).long().clamp(0, 7)
    edges = torch.zeros(len(x), 8, *dx.shape[2:]).scatter_(1, direction, (dx.square() + dy.square()).sqrt())
    edges = F.normalize(F.adaptive_avg_pool2d(edges, 4).flatten(1), dim=1)
    colors = F.adaptive_avg_pool2d(x, 6)
    return torch.cat([edges, (colors - colors.mean((1, 2, 3), keepdim=True)).flatten(1)], 1).numpy()
