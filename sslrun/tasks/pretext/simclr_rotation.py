"""SimCLR with rotation prediction by the same encoder (Dangovski et al. 2022, E-SSL)."""

from torch import Tensor

from sslrun.augment import Rng
from sslrun.config.types import NotNegative
from sslrun.models.encoder import Encoder
from sslrun.tasks.task import Task, TaskNode

NOT_CALLED = ("set_sizes", "prepare", "before_step", "after_step", "learning_rates")


class SimCLRRotation(Task):
    """The sum of SimCLR's loss and that of rotation, times a weight (Dangovski et al., eq. 2).

    At chance level it is the sum of both; it fails where rotation does, on images without an orientation.

    Args:
        simclr, rotation: the two tasks.
        rotation_weight: of the rotation loss; 0.4 in the paper.
    """

    def __init__(
        self,
        encoder: Encoder,
        image_size: int,
        *,
        simclr: TaskNode,
        rotation: TaskNode,
        rotation_weight: NotNegative,
    ) -> None:
        super().__init__()
        self.encoder, self.rotation_weight = encoder, rotation_weight
        assert callable(simclr)
        assert callable(rotation)
        self.simclr, self.rotation = simclr(encoder, image_size), rotation(encoder, image_size)
        for part in (self.simclr, self.rotation):
            if hooks := [h for h in NOT_CALLED if getattr(type(part), h) is not getattr(Task, h)]:
                raise ValueError(f"{type(part).__name__} cannot be a part: its {hooks[0]} would not be called")

    def views(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Return the two views of SimCLR, and the rotated one."""
        rotated = self.rotation.views(images, rng)
        return {**self.simclr.views(images, rng), **rotated}

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        """Return the loss, and the losses and accuracies of both."""
        contrastive, rotation = self.simclr(batch, rng), self.rotation(batch, rng)
        loss = contrastive["loss"] + self.rotation_weight * rotation["loss"]
        parts = {"simclr": contrastive, "rotation": rotation}
        return {"loss": loss, **{f"{k}_{name}": v.detach() for k, out in parts.items() for name, v in out.items()}}
