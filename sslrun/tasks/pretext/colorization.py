"""Colorization: predict the colors of a gray image (Zhang et al. 2016)."""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sslrun.augment import Augment, Rng
from sslrun.base.errors import UserError
from sslrun.base.processes import mean_of_share
from sslrun.config.types import Node, Positive, PositiveInt
from sslrun.data.images import Images
from sslrun.device import Device
from sslrun.models.encoder import Encoder, example_maps
from sslrun.tasks.colors import in_gamut, lab_to_rgb, luminance, rgb_to_lab
from sslrun.tasks.decoder import Decoder
from sslrun.tasks.task import Task

UniformShare = Annotated[float, Field(gt=0, le=1)]
CHUNK = 64  # images at once
SAMPLED = 2000  # images, at most, from which the frequencies of colors are taken
GRAY = 1.0  # mean distance from gray in Lab, below which images count as gray
REDUCTION = 4  # colors are predicted at a quarter of the image's side, as in the paper


class Colorization(Task):
    """Predict the color class of each position of a gray image, with rare colors weighted up.

    Classes are squares of the ab plane of Lab. Loss: cross-entropy (Zhang et al., eq. 2, with hard classes) with
    weights of eq. 4 (without smoothing of the frequencies), a weighted mean; ln(classes) for a uniform prediction.
    Where the color says nothing of the object (stickers, flags, stained cells) there is nothing to learn. The
    statistics of batch norm are those of gray images, while later stages see colors.

    Args:
        augment: draws the view; color jitter would make the colors unpredictable.
        bin: side of a color class in Lab.
        uniform: fraction of the uniform distribution in that of the classes (lambda in eq. 4); 1 for equal weights.
        width: channels of the decoder's first block.
    """

    centers: Tensor
    weights: Tensor

    def __init__(
        self,
        encoder: Encoder,
        image_size: int,
        *,
        augment: Node | Augment,
        bin: Positive,
        uniform: UniformShare,
        width: PositiveInt,
    ) -> None:
        super().__init__()
        assert callable(augment)
        self.encoder, self.augment, self.uniform = encoder, augment, uniform
        self.side = max(1, image_size // REDUCTION)
        self.register_buffer("centers", in_gamut(bin), persistent=False)
        if len(self.centers) < 2:
            raise ValueError(f"pretext.bin={bin:g} makes one class of all colors: use at most 100")
        self.register_buffer("weights", torch.ones(len(self.centers)))
        side = example_maps(encoder.backbone, image_size)[-1].shape[-1]
        self.decoder = Decoder(encoder.channels[-1], side, self.side, width, len(self.centers))

    def prepare(self, images: Images, device: Device) -> float:
        """Weight the classes by their frequency; raise if the images are gray."""
        rows = torch.arange(0, len(images), -(-len(images) // SAMPLED))
        frequency, distance = torch.zeros(len(self.centers)), 0.0
        for part in rows.split(CHUNK):
            pixels = images[part].to(device.torch).float() / 255
            ab = rgb_to_lab(F.avg_pool2d(pixels, REDUCTION))[:, 1:]
            distance += float(ab.norm(dim=1).mean()) * len(part) / len(rows)
            frequency += torch.bincount(self._classes(ab).flatten(), minlength=len(self.centers)).cpu()
        if distance < GRAY:
            raise UserError("pretext=colorization learns from colors, but the images are gray: take another pretext")
        p = frequency / frequency.sum()
        weights = 1 / ((1 - self.uniform) * p + self.uniform / len(p))
        self.weights.copy_(weights / (p * weights).sum())
        return 0.0

    def _classes(self, ab: Tensor) -> Tensor:
        """Return the nearest class of each color, `N x h x w`, of `N x 2 x h x w`."""
        return torch.cdist(ab.movedim(1, 3).flatten(0, 2), self.centers).argmin(1).view(len(ab), *ab.shape[2:])

    def views(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Return the view without colors."""
        return {"gray": luminance(self.augment(images, rng))}

    def figures(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Return the gray images, and with the mean of the predicted colors."""
        gray = luminance(images)
        p = self.decoder(self.encoder.maps(gray)[-1]).float().softmax(1)
        ab = F.interpolate(torch.einsum("nkhw,kc->nchw", p, self.centers), images.shape[2:], mode="bilinear")
        return {"gray": gray, "colorized": lab_to_rgb(torch.cat([rgb_to_lab(gray)[:, :1], ab], 1))}

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        """Return the weighted cross-entropy, and the unweighted accuracy of the color classes."""
        view = self.augment(batch["images"], rng)
        logits = self.decoder(self.encoder.maps(luminance(view))[-1]).float()
        with torch.no_grad(), torch.autocast(view.device.type, enabled=False):
            target = self._classes(rgb_to_lab(F.avg_pool2d(view, REDUCTION))[:, 1:])
        weights = self.weights[target]
        losses = F.cross_entropy(logits, target, reduction="none")
        loss = (weights * losses).sum() / mean_of_share(weights.sum())
        accuracy = (logits.detach().argmax(1) == target).float().mean()
        return {"loss": loss, "pretext_accuracy": accuracy}
