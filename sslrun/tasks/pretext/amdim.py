"""AMDIM: features of one view against the feature maps of another, at two scales (Bachman et al. 2019)."""

from typing import Any

import torch
from torch import Tensor, nn

from sslrun.augment import Augment, Rng
from sslrun.base.processes import gathered
from sslrun.config.types import Node, NotNegative, Positive, PositiveInt
from sslrun.device import in_float32
from sslrun.models.encoder import Encoder, average
from sslrun.tasks.heads import mlp
from sslrun.tasks.task import Task

SCALES = 2  # maps, the last ones
TINY = 1e-30  # against the logarithm of 0


class AMDIM(Task):
    """The features of one view attract each position of the other view's maps, and repel those of other images.

    Loss: noise-contrastive estimation (Bachman et al., eq. 1 and 2), symmetrized over the views, a mean over two
    scales; ln(1 + (N - 1) P) at chance level, with N images in the batch and P positions of a map. Scores are divided
    by the root of their dimension, softly clipped and regularized as in section 3.4. Its negatives are those of the
    batch: few images make it easy. The paper limits the receptive fields of the maps, which these backbones do not.

    Args:
        augment: draws the two views.
        clip: largest absolute value of a score.
        score_weight: of the mean squared score in the loss.
        hidden_dim, output_dim: of the projection heads.
    """

    def __init__(
        self,
        encoder: Encoder,
        image_size: int,
        *,
        augment: Node | Augment,
        clip: Positive,
        score_weight: NotNegative,
        hidden_dim: PositiveInt,
        output_dim: PositiveInt,
    ) -> None:
        super().__init__()
        assert callable(augment)
        self.encoder, self.augment, self.clip, self.score_weight = encoder, augment, clip, score_weight
        self.projector = mlp(encoder.feature_dim, hidden_dim, output_dim)
        self.local = nn.ModuleList(nn.Conv2d(c, output_dim, 1) for c in encoder.channels[-SCALES:])

    def views(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Return two views of each image."""
        return {"view 1": self.augment(images, rng), "view 2": self.augment(images, rng)}

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        """Return the loss, and the fraction of features that are most similar to a position of their own image."""
        views = torch.cat(list(self.views(batch["images"], rng).values()))
        maps = self.encoder.maps(views)
        features = gathered(in_float32(self.projector, average(maps[-1])), views=2).chunk(2)
        losses, hits = [], []
        for layer, x in zip(self.local, maps[-SCALES:], strict=True):
            local = gathered(in_float32(layer, x).permute(0, 2, 3, 1).flatten(1, 2), views=2)
            first, second = local.chunk(2)  # N x P x D
            for g, other in ((features[0], second), (features[1], first)):
                with torch.autocast(g.device.type, enabled=False):
                    scores = (g / g.shape[1] ** 0.5 @ other.flatten(0, 1).T).view(len(g), *other.shape[:2])
                    losses.append(nce(soft_clip(scores, self.clip)) + self.score_weight * scores.square().mean())
                nearest = scores.detach().flatten(1).argmax(1) // scores.shape[2]
                hits.append((nearest == torch.arange(len(g), device=g.device)).float().mean())
        return {"loss": torch.stack(losses).mean(), "pretext_accuracy": torch.stack(hits).mean()}


def soft_clip(scores: Tensor, clip: float) -> Tensor:
    """Return scores between -clip and clip, by tanh."""
    return clip * torch.tanh(scores / clip)


def nce(scores: Tensor) -> Tensor:
    """Return the noise-contrastive loss, a mean over images and positions.

    Args:
        scores: `N x N x P`, of the features of image i and position p of image j.
    """
    loss: Tensor = _NCE.apply(scores)
    return loss


class _NCE(torch.autograd.Function):
    """The loss and its gradient, from the same exponentials: torch's own operations take half as long again."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        n, _, positions = scores.shape
        i = torch.arange(n, device=scores.device)
        largest = scores.amax((1, 2), keepdim=True)
        exps = (scores - largest).exp_()
        own = exps[i, i]  # N x P
        exps.diagonal().zero_()
        whole = (own + exps.sum((1, 2))[:, None]).clamp_(min=TINY)
        loss = (whole.log() + largest[:, 0] - scores[i, i]).mean()
        exps *= (1 / whole).mean(1)[:, None, None] / n
        exps[i, i] = (own / whole - 1) / (n * positions)
        ctx.save_for_backward(exps)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0]
