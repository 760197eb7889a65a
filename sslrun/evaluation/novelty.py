"""Novelty detection: is an image unlike all training images? By the distance to the nearest of them.

As in Sun et al. 2022, "Out-of-distribution detection with deep nearest neighbors", but with the feature maps of all
stages: the last one of a network that has learned few images keeps little of what it has not seen. Measured in
docs/predict.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from sslrun.base.errors import UserError, described
from sslrun.base.files import replacing
from sslrun.data.dataset import Dataset
from sslrun.device import Device
from sslrun.models.encoder import Encoder
from sslrun.models.features import map_features

NOVELTY = "novelty.npz"
IMAGES = 1024  # training images that are compared at most
QUANTILE = 0.99  # of the distances of training images to the others
COPY = 0.01  # distance below which two images are copies
CONSTANT = 0.01  # SD of a channel, as a fraction of the mean of its map, below which it is constant


@dataclass(frozen=True)
class Novelty:
    """What training images look like to a network.

    Attributes:
        mean, scale: D, of the spatial means of all feature maps; each map has the same weight.
        bank: `N x D`, standardized spatial means of training images, as they are read from a file (half precision).
        threshold: distance to the nearest of the others that 1 % of the training images have, of fewer than 100 the
            farthest; with held-out images, that of these to the nearest training image. Infinite if nothing is known.
    """

    mean: Tensor
    scale: Tensor
    bank: Tensor
    threshold: float

    @classmethod
    def fitted(
        cls,
        maps: Sequence[Tensor],
        groups: np.ndarray | None,
        held_out: Sequence[Tensor] | None,
        labels: Tensor | None = None,
    ) -> "Novelty":
        """Fit it to training images.

        Args:
            maps: as returned by `map_features` for N training images.
            groups: N; images of one group are not neighbors. None: every image is a group. Copies are one, too.
            held_out: of images that the network was not trained on; their distances set the threshold then.
            labels: N; an image without a neighbor of its class does not count for the threshold.
        """
        features = torch.cat(list(maps), 1)
        scale = torch.cat([_scale(m) for m in maps])
        bank = ((features - features.mean(0)) / scale).half().float()
        fitted = cls(features.mean(0), scale, bank, torch.inf)
        if held_out:
            own = fitted.distances(held_out)
        else:
            distances = _distances(bank, bank)
            same = distances < COPY
            if groups is not None:
                group = torch.from_numpy(np.unique(groups, return_inverse=True)[1])
                same |= group[:, None] == group
            own = distances.masked_fill(same, torch.inf).amin(1).numpy()
            if labels is not None:
                own = own[((labels[:, None] == labels) & ~same).any(1).numpy()]
        own = own[np.isfinite(own)]
        if not len(own):
            return fitted
        return replace(fitted, threshold=max(COPY, float(np.quantile(own, QUANTILE, method="higher"))))

    @classmethod
    def of(cls, encoder: Encoder, data: Dataset, val: Dataset | None, device: Device) -> "Novelty":
        """Fit it to at most 1,024 of the training images, evenly spaced; `val` are validation images, if there are."""
        some = _spread(data)
        held_out = map_features(encoder, _spread(val).images, device) if val else None
        return cls.fitted(map_features(encoder, some.images, device), some.groups, held_out, some.labels)

    def distances(self, maps: Sequence[Tensor]) -> np.ndarray:
        """Return the distance of each image to the nearest training image.

        Args:
            maps: as returned by `map_features`.
        """
        return _distances((torch.cat(list(maps), 1) - self.mean) / self.scale, self.bank).amin(1).numpy()

    def save(self, path: Path) -> None:
        """Write it to a file, unless nothing is known."""
        if not math.isfinite(self.threshold):
            return
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, mean=self.mean, scale=self.scale, bank=self.bank.half(), threshold=self.threshold)

    @classmethod
    def load(cls, path: Path) -> "Novelty":
        """Read it from a file.

        Raises:
            UserError: it is damaged.
        """
        try:
            with np.load(path) as arrays:
                mean, scale, bank = (torch.from_numpy(arrays[k].astype(np.float32)) for k in ("mean", "scale", "bank"))
                threshold = float(arrays["threshold"])
            if not (len(bank) and bank.shape[1:] == mean.shape == scale.shape and 0 < threshold < math.inf):
                raise ValueError("its arrays do not fit")
            return cls(mean, scale, bank, threshold)
        except (OSError, ValueError, TypeError, KeyError, EOFError, BadZipFile) as error:
            raise UserError(
                f"{path} cannot be read ({described(error)}); remove it to classify images without comparing them with "
                "the training images"
            ) from error


def _scale(maps: Tensor) -> Tensor:
    """Return divisors that standardize a map and give it the same weight as the others.

    A channel that is nearly constant on the training images gets the mean SD: it would decide alone what is foreign.
    """
    sd = maps.std(0)
    mean = sd.mean().clamp(min=1e-6)
    return torch.where(sd < CONSTANT * mean, mean, sd) * maps.shape[1] ** 0.5


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")  # with a product, copies have a distance


def _spread(data: Dataset) -> Dataset:
    return data.take(np.linspace(0, len(data) - 1, min(IMAGES, len(data))).round().astype(int))
