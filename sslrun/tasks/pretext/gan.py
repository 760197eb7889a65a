"""GAN: the encoder is the discriminator (Goodfellow et al. 2014, Radford et al. 2016)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslrun.augment import Augment, Rng, moved
from sslrun.config.types import Node, PositiveInt
from sslrun.device import in_float32
from sslrun.models.encoder import Encoder
from sslrun.tasks.decoder import Decoder
from sslrun.tasks.task import Task

SIDE = 4  # px, of the map that the generator starts from
MAX_FACTOR = 1e4  # factor of a gradient


class GAN(Task):
    """The encoder learns to tell images from those of a generator, which learns to deceive it.

    Loss of the discriminator: softplus(-D(x)) + softplus(D(G(z))) (Goodfellow et al., eq. 1); 2 ln 2 = 1.386 at chance
    level, about 0 where the generator has lost. One optimizer trains both: the gradient of the generated images is
    reversed (Ganin & Lempitsky 2015) and multiplied by exp(-D(G(z))), which makes it that of the generator's
    non-saturating loss softplus(-D(G(z))). This is approximate, since images of a batch share batch statistics, and
    ends where D(G(z)) falls below -9, where the factor is limited. Real and generated images are batches of their own,
    but the running statistics are of both. Both kinds are augmented (Zhao et al. 2020). Features serve to tell real
    from generated, which details decide; the generator may collapse to few images.

    Args:
        augment: of images and generated images.
        latent_dim: of the generator's input.
        width: channels of the generator's first block.
    """

    def __init__(
        self,
        encoder: Encoder,
        image_size: int,
        *,
        augment: Node | Augment,
        latent_dim: PositiveInt,
        width: PositiveInt,
    ) -> None:
        super().__init__()
        assert callable(augment)
        self.encoder, self.augment, self.latent_dim = encoder, augment, latent_dim
        self.head = nn.Linear(encoder.feature_dim, 1)
        self.generator = nn.Sequential(
            nn.Linear(latent_dim, width * SIDE**2),
            nn.Unflatten(1, (width, SIDE, SIDE)),
            Decoder(width, SIDE, image_size, width),
            nn.Sigmoid(),
        )

    def views(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Return the view."""
        return {"view": self.augment(images, rng)}

    def generated(self, n: int, rng: Rng, device: torch.device) -> Tensor:
        """Return generated images, `n x 3 x S x S`."""
        out: Tensor = self.generator(moved(rng.randn(n, self.latent_dim), device))
        return out.float()

    def figures(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Return generated images."""
        return {"generated": self.generated(len(images), rng, images.device)}

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        """Return the discriminator's loss, and the fraction of images that it classifies correctly."""
        images = batch["images"]
        fake = self.generated(len(images), rng, images.device)
        views = self.augment(images, rng), self.augment(fake, rng)
        real_logits, fake_logits = (in_float32(self.head, self.encoder(x)).squeeze(1) for x in views)
        if fake.requires_grad:
            factor = fake_logits.detach().neg().exp().clamp(max=MAX_FACTOR)
            fake.register_hook(lambda gradient: -factor[:, None, None, None] * gradient)
        hits = torch.cat([real_logits > 0, fake_logits < 0])
        return {
            "loss": discriminator_loss(real_logits, fake_logits),
            "pretext_accuracy": hits.float().mean(),
            "generator_loss": F.softplus(-fake_logits.detach()).mean(),
        }


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return the loss of logits of real and of generated images, N each."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()
