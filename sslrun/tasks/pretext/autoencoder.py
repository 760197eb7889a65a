"""Denoising autoencoder: reconstruct an image from a noisy one (Vincent et al. 2008)."""

import torch
from torch import Tensor

from sslrun.augment import Augment, Rng, moved
from sslrun.config.types import Node, NotNegative, PositiveInt, Share
from sslrun.device import in_float32
from sslrun.models.encoder import Encoder, example_maps
from sslrun.tasks.decoder import Decoder
from sslrun.tasks.reconstruction import destandardized, standardized
from sslrun.tasks.task import Task


class Autoencoder(Task):
    """The decoder reconstructs the view from the encoder's last map of the noisy view.

    Loss: squared error in standard deviations of the data set's colors; about 1 for the mean color. It learns what
    costs most pixels, background and large areas, and often nothing that tells classes apart; the statistics of batch
    norm are those of noisy images.

    Args:
        augment: draws the view.
        noise: standard deviation of the noise, in standard deviations of the colors.
        drop: fraction of the pixels that are replaced by the mean color.
        width: channels of the decoder's first block.
    """

    def __init__(
        self,
        encoder: Encoder,
        image_size: int,
        *,
        augment: Node | Augment,
        noise: NotNegative,
        drop: Share,
        width: PositiveInt,
    ) -> None:
        super().__init__()
        assert callable(augment)
        self.encoder, self.augment, self.noise, self.drop = encoder, augment, noise, drop
        side = example_maps(encoder.backbone, image_size)[-1].shape[-1]
        self.decoder = Decoder(encoder.channels[-1], side, image_size, width)

    def noisy(self, images: Tensor, rng: Rng) -> Tensor:
        """Return images with noise and dropped pixels."""
        n, _, height, width = images.shape
        noise = moved(rng.randn(n, 3, height, width), images.device) * self.noise * self.encoder.std
        dropped = moved(rng.rand(n, 1, height, width), images.device) < self.drop
        return torch.where(dropped, self.encoder.mean, images + noise)

    def views(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Return the view and its noisy version."""
        view = self.augment(images, rng)
        return {"view": view, "noisy": self.noisy(view, rng).clamp(0, 1)}

    def figures(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Return noisy images and their reconstructions."""
        noisy = self.noisy(images, rng)
        out = in_float32(self.decoder, self.encoder.maps(noisy)[-1])
        return {"noisy": noisy.clamp(0, 1), "reconstruction": destandardized(out, self.encoder)}

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        """Return the squared error."""
        view = self.augment(batch["images"], rng)
        out = self.decoder(self.encoder.maps(self.noisy(view, rng))[-1])
        return {"loss": (out.float() - standardized(view, self.encoder)).square().mean()}
