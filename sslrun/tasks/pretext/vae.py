"""Variational autoencoder (Kingma & Welling 2014; beta-VAE, Higgins et al. 2017)."""

from torch import Tensor, nn

from sslrun.augment import Augment, Rng, moved
from sslrun.config.types import Node, NotNegative, PositiveInt
from sslrun.device import in_float32
from sslrun.models.encoder import Encoder
from sslrun.tasks.decoder import Decoder
from sslrun.tasks.reconstruction import destandardized, standardized
from sslrun.tasks.task import Task

SIDE = 4  # px, of the map that the decoder starts from


class VAE(Task):
    """The decoder reconstructs the view from a sample of a normal distribution that the features determine.

    Loss: the negative evidence lower bound up to a constant, with a normal likelihood of the standardized colors, a
    value of a pixel: 0.5 squared error + beta KL divergence / (3 S^2). About 0.5 for the mean color with a divergence
    of 0, which is collapse: then no image has an influence. Features keep only what the samples can carry: large areas
    and colors.

    Args:
        augment: draws the view.
        beta: weight of the divergence; 1 is the lower bound.
        latent_dim: of the normal distribution.
        width: channels of the decoder's first block.
    """

    def __init__(
        self,
        encoder: Encoder,
        image_size: int,
        *,
        augment: Node | Augment,
        beta: NotNegative,
        latent_dim: PositiveInt,
        width: PositiveInt,
    ) -> None:
        super().__init__()
        assert callable(augment)
        self.encoder, self.augment, self.beta, self.latent_dim = encoder, augment, beta, latent_dim
        self.posterior = nn.Linear(encoder.feature_dim, 2 * latent_dim)
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, width * SIDE**2),
            nn.Unflatten(1, (width, SIDE, SIDE)),
            Decoder(width, SIDE, image_size, width),
        )

    def views(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Return the view."""
        return {"view": self.augment(images, rng)}

    def figures(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Return the reconstruction from the mean of the distribution, and images from samples of the prior."""
        mean, _ = in_float32(self.posterior, self.encoder(images)).chunk(2, 1)
        prior = rng.randn(len(images), self.latent_dim).to(mean.device)
        drawn = {"reconstruction": mean, "sample": prior}
        return {name: destandardized(self.decoder(z), self.encoder) for name, z in drawn.items()}

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        """Return the loss, the squared error of a value, and the divergence of an image in nats."""
        view = self.augment(batch["images"], rng)
        mean, log_variance = in_float32(self.posterior, self.encoder(view)).chunk(2, 1)
        log_variance = log_variance.clamp(-20, 20)
        noise = moved(rng.randn(*mean.shape), mean.device)
        out = self.decoder(mean + (0.5 * log_variance).exp() * noise).float()
        error = (out - standardized(view, self.encoder)).square().mean()
        divergence = kl_divergence(mean, log_variance)
        loss = 0.5 * error + self.beta * divergence / view[0].numel()
        return {"loss": loss, "squared_error": error.detach(), "kl_divergence": divergence.detach()}


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the divergence from the standard normal distribution (Kingma & Welling, appendix B), a mean over N.

    Args:
        mean, log_variance: `N x D`.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
