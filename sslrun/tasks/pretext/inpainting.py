"""Inpainting: fill in a hidden square of an image (context encoders, Pathak et al. 2016)."""

import torch
from torch import Tensor

from sslrun.augment import Augment, Rng
from sslrun.config.types import Node, PositiveInt
from sslrun.device import in_float32
from sslrun.models.encoder import Encoder, example_maps
from sslrun.tasks.decoder import Decoder
from sslrun.tasks.masks import MaskRatio
from sslrun.tasks.reconstruction import destandardized, standardized
from sslrun.tasks.task import Task


class Inpainting(Task):
    """The decoder predicts a hidden square from the encoder's last map of the rest of the image.

    Loss: squared error inside the square (Pathak et al., eq. 1, without the adversarial loss), in standard deviations
    of the data set's colors; about 1 for the mean color. The encoder sees a square of the mean color in training that
    it never sees later; images that are empty there teach nothing.

    Args:
        augment: draws the view.
        mask_ratio: area of the square as a fraction of the image.
        width: channels of the decoder's first block.
    """

    def __init__(
        self,
        encoder: Encoder,
        image_size: int,
        *,
        augment: Node | Augment,
        mask_ratio: MaskRatio,
        width: PositiveInt,
    ) -> None:
        super().__init__()
        assert callable(augment)
        self.encoder, self.augment = encoder, augment
        self.side = min(image_size - 1, max(1, round(mask_ratio**0.5 * image_size)))
        side = example_maps(encoder.backbone, image_size)[-1].shape[-1]
        self.decoder = Decoder(encoder.channels[-1], side, image_size, width)

    def mask(self, images: Tensor, rng: Rng) -> Tensor:
        """Return which pixels are hidden, `N x 1 x S x S`: a square at a random position."""
        size = images.shape[-1]
        corner = rng.randint(size - self.side + 1, 2, len(images), dim=1).to(images.device, non_blocking=True)
        at = torch.arange(size, device=images.device)
        rows, columns = ((at >= c[:, None]) & (at < c[:, None] + self.side) for c in corner)
        return (rows[:, :, None] & columns[:, None, :])[:, None]

    def views(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Return the view with the square in the mean color."""
        view = self.augment(images, rng)
        return {"hidden": torch.where(self.mask(view, rng), self.encoder.mean, view)}

    def figures(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Return images with a hidden square, and with the prediction in it."""
        mask = self.mask(images, rng)
        hidden = torch.where(mask, self.encoder.mean, images)
        out = destandardized(in_float32(self.decoder, self.encoder.maps(hidden)[-1]), self.encoder)
        return {"hidden": hidden, "reconstruction": torch.where(mask, out, images)}

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        """Return the squared error inside the square."""
        view = self.augment(batch["images"], rng)
        mask = self.mask(view, rng)
        out = self.decoder(self.encoder.maps(torch.where(mask, self.encoder.mean, view))[-1])
        error = (out.float() - standardized(view, self.encoder)).square() * mask
        return {"loss": error.sum() / (3 * self.side**2 * len(view))}
