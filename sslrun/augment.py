"""Augmentation of whole batches as tensor code, with independent random numbers per sample.

Random numbers come from the `Rng` argument and are drawn on the CPU, so views are the same on every device.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sslrun.config.types import Fraction, NotNegative, Pair

Area = Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=2, max_length=2)]
BLUR_FROM = 64  # px; smaller images have too little detail
# Luminance weights, and the YIQ color space, in which hue is an angle.
_GRAY = torch.tensor([0.299, 0.587, 0.114])
_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
_FROM_YIQ = torch.linalg.inv(_TO_YIQ)
ORDER, VIEWS = 0, 1  # purposes that random numbers are seeded for


def generator(*numbers: int) -> torch.Generator:
    """Return a CPU generator seeded by a few integers, such as (seed, purpose, epoch, step)."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


def moved(numbers: Tensor, device: torch.device) -> Tensor:
    """Move numbers from the CPU to a device without waiting for it: to a GPU through pinned memory."""
    return (numbers.pin_memory() if device.type == "cuda" else numbers).to(device, non_blocking=True)


class Rng:
    """Random numbers of one step, drawn for every sample of the global batch, of which a process takes its share.

    Args:
        generator: a CPU generator.
        batch: number of samples of the global batch; None if this process has all of them.
        share: this process's samples.
    """

    def __init__(self, generator: torch.Generator, batch: int | None = None, share: slice = slice(None)) -> None:
        self._generator, self._batch, self._share = generator, batch, share

    def rand(self, *shape: int, dim: int = 0) -> Tensor:
        """Return uniform numbers in [0, 1), drawn for the global batch; this process's rows along `dim`."""
        return self._own(torch.rand(self._whole(shape, dim), generator=self._generator), dim)

    def randint(self, high: int, *shape: int, dim: int = 0) -> Tensor:
        """Return integers below `high`, drawn for the global batch; this process's rows along `dim`."""
        return self._own(torch.randint(high, self._whole(shape, dim), generator=self._generator), dim)

    def randn(self, *shape: int, dim: int = 0) -> Tensor:
        """Return standard normal numbers, drawn for the global batch; this process's rows along `dim`."""
        return self._own(torch.randn(self._whole(shape, dim), generator=self._generator), dim)

    def _whole(self, shape: Sequence[int], dim: int) -> list[int]:
        """Return the shape for the global batch.

        Raises:
            ValueError: `dim` is not that of the samples of the batch.
        """
        if self._batch is None:
            return [*shape]
        own = len(range(self._batch)[self._share])
        if shape[dim] != own:
            raise ValueError(f"numbers for {shape[dim]} rows along dim={dim}, where this process has {own} samples")
        return [*shape[:dim], self._batch, *shape[dim + 1 :]]

    def _own(self, numbers: Tensor, dim: int) -> Tensor:
        return numbers if self._batch is None else numbers[(slice(None),) * dim + (self._share,)]

    def copy(self) -> "Rng":
        """Return an `Rng` that will draw the same numbers again, e.g. for the same view at another size."""
        return Rng(self._generator.clone_state(), self._batch, self._share)

    def initial_seed(self) -> int:
        """Return the seed of the generator."""
        return self._generator.initial_seed()


class Augment:
    """Random crop, rotation and horizontal flip in one resampling, then color jitter, grayscale and blur.

    Args:
        crop_scale: range of the crop's area as a fraction of the image; `[1, 1]` disables cropping.
        crop_ratio: range of the crop's aspect ratio (width / height), drawn log-uniformly.
        degrees: rotation angles are drawn from [-degrees, degrees]; the border is replicated into the corners.
        horizontal_flip: flip with a probability of 0.5.
        color_jitter: strength of brightness, contrast, saturation and hue jitter, as in SimCLR (appendix A).
        jitter_probability: probability of color jitter.
        grayscale: probability of conversion to grayscale.
        blur: probability of Gaussian blur; `auto` is 0.5 from 64 px and 0 below.
        probability: probability that an image is augmented at all; otherwise it is only flipped at random.
    """

    def __init__(
        self,
        *,
        crop_scale: Area,
        crop_ratio: Pair,
        degrees: Annotated[float, Field(ge=0, le=45)],
        horizontal_flip: bool,
        color_jitter: Annotated[list[NotNegative], Field(min_length=4, max_length=4)],
        jitter_probability: Fraction,
        grayscale: Fraction,
        blur: Fraction | Literal["auto"],
        probability: Fraction,
    ) -> None:
        if crop_scale[0] > crop_scale[1]:
            raise ValueError(f"crop_scale must be [min, max] with min <= max, found {crop_scale}")
        if crop_ratio[0] <= 0 or crop_ratio[0] > crop_ratio[1]:
            raise ValueError(f"crop_ratio must be [min, max] with 0 < min <= max, found {crop_ratio}")
        if color_jitter[3] > 0.5:
            raise ValueError(f"the hue in color_jitter must be at most 0.5 (180 degrees), found {color_jitter[3]}")
        self.crop_scale, self.crop_ratio = crop_scale, crop_ratio
        self.degrees, self.horizontal_flip = degrees, horizontal_flip
        self.color_jitter, self.jitter_probability = color_jitter, jitter_probability
        self.grayscale, self.blur, self.probability = grayscale, blur, probability

    def __call__(self, images: Tensor, rng: Rng) -> Tensor:
        """Return one view of each image.

        Args:
            images: `N x 3 x H x W`, float, in [0, 1].
            rng: source of the random numbers, which are drawn per image.

        Returns:
            The same shape and range.
        """
        if self.probability == 0:
            return self._flipped(images, rng.rand(len(images)))
        u = rng.rand(len(images), 14).to(images.device, non_blocking=True)
        with torch.autocast(images.device.type, enabled=False):  # colors need more than the 8 bits of bf16
            views = self._crop_and_flip(images.contiguous(), u[:, :5], u[:, 13])
            views = self._recolor(views, u[:, 5:11])
            blur = (0.5 if images.shape[-1] >= BLUR_FROM else 0.0) if self.blur == "auto" else self.blur
            views = gaussian_blur(views, u[:, 11] < blur, 0.1 + 1.9 * u[:, 12]) if blur > 0 else views
        if self.probability == 1:
            return views
        chosen = rng.rand(len(images)).to(images.device, non_blocking=True) < self.probability
        return torch.where(chosen[:, None, None, None], views, self._flipped(images, u[:, 4]))

    def _flipped(self, images: Tensor, u: Tensor) -> Tensor:
        flip = (u.to(images.device, non_blocking=True) < 0.5) & self.horizontal_flip
        return torch.where(flip[:, None, None, None], images.flip(-1), images)

    def _crop_and_flip(self, images: Tensor, u: Tensor, turn: Tensor) -> Tensor:
        flip = (u[:, 4] < 0.5) & self.horizontal_flip
        if tuple(self.crop_scale) == (1, 1) and self.degrees == 0:
            return self._flipped(images, u[:, 4])
        low, high = self.crop_scale
        log_low, log_high = (math.log(r) for r in self.crop_ratio)
        area, ratio = low + (high - low) * u[:, 0], torch.exp(log_low + (log_high - log_low) * u[:, 1])
        width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        x, y = (1 - width) * (2 * u[:, 2] - 1), (1 - height) * (2 * u[:, 3] - 1)
        angle = math.radians(self.degrees) * (2 * turn - 1)
        return crop(images, x, y, torch.where(flip, -width, width), height, angle)

    def _recolor(self, images: Tensor, u: Tensor) -> Tensor:
        brightness, contrast, saturation, hue = self.color_jitter
        on = u[:, 4] < self.jitter_probability
        gray = u[:, 5] < self.grayscale
        if not any(self.color_jitter) and self.grayscale == 0:
            return images

        def factor(strength: float, draws: Tensor) -> Tensor:
            return torch.where(on, 1 + strength * (2 * draws - 1), 1).clamp(min=0)

        rotation = torch.where(on, hue * (2 * u[:, 3] - 1), 0)
        saturate = torch.where(gray, 0, factor(saturation, u[:, 2]))
        return recolor(images, factor(brightness, u[:, 0]), factor(contrast, u[:, 1]), saturate, rotation)


def crop(images: Tensor, x: Tensor, y: Tensor, width: Tensor, height: Tensor, angle: Tensor) -> Tensor:
    """Crop a rectangle from each image and resize it to the image's size (bilinear).

    Args:
        images: `N x C x H x W`.
        x, y: N centers, from -1 to 1 (edge to edge).
        width, height: N sizes as fractions of the image; a negative width flips.
        angle: N angles by which the rectangle is rotated, in radians.
    """
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack(
        [torch.stack([cos * width, -sin * height, x], 1), torch.stack([sin * width, cos * height, y], 1)], 1
    )
    grid = F.affine_grid(theta.to(images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def recolor(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Jitter the colors of each image by one affine map (hue, saturation, contrast, brightness), then clamp.

    Args:
        images: `N x 3 x H x W` in [0, 1].
        brightness, contrast, saturation: N factors; 1 is the identity, a saturation of 0 is grayscale.
        hue: N rotations of the hue, in units of 360 degrees; 0 is the identity.
    """
    n, device = len(images), images.device
    gray, to_yiq, from_yiq = (t.to(device, non_blocking=True) for t in (_GRAY, _TO_YIQ, _FROM_YIQ))
    cos, sin = torch.cos(2 * math.pi * hue) * saturation, torch.sin(2 * math.pi * hue) * saturation
    rotate = torch.zeros(n, 3, 3, device=device)
    rotate[:, 0, 0] = 1
    rotate[:, 1, 1], rotate[:, 1, 2], rotate[:, 2, 1], rotate[:, 2, 2] = cos, -sin, sin, cos
    matrix = from_yiq @ rotate @ to_yiq
    flat = images.flatten(2)
    mean = (gray @ flat.mean(2).T)[:, None, None]  # hue and saturation leave the luminance unchanged
    shift = (brightness * (1 - contrast))[:, None, None] * mean
    matrix = matrix * (brightness * contrast)[:, None, None]
    return torch.baddbmm(shift.to(flat.dtype), matrix.to(flat.dtype), flat).clamp_(0, 1).view_as(images)


def gaussian_blur(images: Tensor, chosen: Tensor, sigma: Tensor) -> Tensor:
    """Blur the chosen images, each with its own sigma.

    Args:
        images: `N x C x H x W`.
        chosen: N booleans.
        sigma: N standard deviations in px.
    """
    n, c, h, w = images.shape
    radius = max(1, round(0.05 * w))
    positions = torch.arange(-radius, radius + 1, device=images.device)
    weights = torch.exp(-0.5 * (positions / sigma[:, None]) ** 2)
    identity = (positions == 0).to(weights.dtype)
    kernel = torch.where(chosen[:, None], weights / weights.sum(1, keepdim=True), identity).to(images.dtype)
    kernel = kernel.repeat_interleave(c, 0)
    x = F.pad(images, [radius] * 4, mode="reflect").reshape(1, n * c, h + 2 * radius, w + 2 * radius)
    x = F.conv2d(x, kernel[:, None, None, :], groups=n * c)
    x = F.conv2d(x, kernel[:, None, :, None], groups=n * c)
    return x.reshape(n, c, h, w)
