"""Novelty detection: is an image unlike all training images? By the distance to the nearest of them.

As in Sun et al. 2022, "Out-of-distribution detection with deep nearest neighbors", but with the feature maps of all
stages: the last one of a network that has learned few images keeps little of what it has not seen. Measured in
docs/predict.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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
FLOOR = 1e-6  # of standard deviations


@dataclass(frozen=True)
class Novelty:
    """What training images look like to a network.

    Attributes:
        mean, scale: D, of the spatial means of all feature maps; each map has the same weight.
        bank: `N x D`, standardized spatial means of training images.
        threshold: distance that 1 % of the training images have to the nearest of the others.
    """

    mean: Tensor
    scale: Tensor
    bank: Tensor
    threshold: float

    @classmethod
    def fitted(cls, maps: Sequence[Tensor], groups: np.ndarray | None, held_out: Sequence[Tensor] | None) -> "Novelty":
        """Fit it to training images.

        Args:
            maps: as returned by `map_features` for N training images.
            groups: N; images of one group are not neighbors. None: every image is a group.
            held_out: of images that the network was not trained on; their distances set the threshold then.
        """
        features = torch.cat(list(maps), 1)
        scale = torch.cat([(m.std(0) + FLOOR) * m.shape[1] ** 0.5 for m in maps])
        fitted = cls(features.mean(0), scale, (features - features.mean(0)) / scale, 0.0)
        if held_out:
            own = fitted.distances(held_out)
        else:
            distances = torch.cdist(fitted.bank, fitted.bank)
            group = torch.from_numpy(np.unique(groups, return_inverse=True)[1]) if groups is not None else None
            same = torch.eye(len(features), dtype=torch.bool) if group is None else group[:, None] == group
            own = distances.masked_fill(same, torch.inf).amin(1).numpy()
            own = own[np.isfinite(own)]
        threshold = float(np.quantile(own, QUANTILE, method="higher")) if len(own) else float("inf")
        return cls(fitted.mean, scale, fitted.bank, max(threshold, FLOOR))

    @classmethod
    def of(cls, encoder: Encoder, data: Dataset, val: Dataset | None, device: Device) -> "Novelty":
        """Fit it to at most 1,024 of the training images, evenly spaced; `val` are validation images, if there are."""
        some = data.take(np.linspace(0, len(data) - 1, min(IMAGES, len(data))).round().astype(int))
        held_out = None
        if val:
            rows = np.linspace(0, len(val) - 1, min(IMAGES, len(val))).round().astype(int)
            held_out = map_features(encoder, val.take(rows).images, device)
        return cls.fitted(map_features(encoder, some.images, device), some.groups, held_out)

    def distances(self, maps: Sequence[Tensor]) -> np.ndarray:
        """Return the distance of each image to the nearest training image.

        Args:
            maps: as returned by `map_features`.
        """
        return torch.cdist((torch.cat(list(maps), 1) - self.mean) / self.scale, self.bank).amin(1).numpy()

    def save(self, path: Path) -> None:
        """Write it to a file."""
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
                return cls(mean, scale, bank, float(arrays["threshold"]))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise UserError(
                f"{path} is damaged ({described(error)}); without that file images are classified, too"
            ) from error
