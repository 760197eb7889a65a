"""MoCo v2: contrastive learning against a queue of earlier keys (He et al. 2020, Chen et al. 2020)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sslrun.augment import Augment, Rng
from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.base.processes import gathered
from sslrun.base.text import counted
from sslrun.config.types import Node, Positive, PositiveInt, Share, TwoOrMore
from sslrun.device import in_float32
from sslrun.models.encoder import Encoder
from sslrun.tasks.heads import mlp
from sslrun.tasks.task import Task
from sslrun.tasks.teacher import Teacher

MAX_QUEUE = 4096  # keys of queue=auto


class MoCo(Task):
    """The query of one view attracts the key of the other, and is repelled by the keys of earlier batches.

    InfoNCE (He et al., eq. 1); at chance level the loss is ln(queue + 1). Keys come from a moving average of the
    network. The batch statistics of query and key are those of the same images (He et al., section 3.3),
    which is known to make the task easier than it should be with batches of very few images.

    Args:
        augment: draws the two views.
        queue: number of keys; `auto` is at most 4,096, and at most half of the images. Keys of the query's own image,
            from the epoch before, do not count.
        temperature: of the similarities.
        momentum: decay of the moving average.
        hidden_dim, output_dim: of the projection head.
    """

    queue: Tensor
    rows: Tensor
    position: Tensor

    def __init__(
        self,
        encoder: Encoder,
        image_size: int,
        *,
        augment: Node | Augment,
        queue: PositiveInt | Literal["auto"],
        temperature: Positive,
        momentum: Share,
        hidden_dim: PositiveInt,
        output_dim: TwoOrMore,
    ) -> None:
        super().__init__()
        assert callable(augment)
        self.encoder, self.augment, self.temperature, self.momentum = encoder, augment, temperature, momentum
        self.projector = mlp(encoder.feature_dim, hidden_dim, output_dim)
        self.teacher = Teacher(encoder=encoder, projector=self.projector)
        self.auto = queue == "auto"
        self.size = MAX_QUEUE if isinstance(queue, str) else queue
        self.register_buffer("queue", torch.zeros(0, output_dim))  # filled by `set_sizes`
        self.register_buffer("rows", torch.zeros(0, dtype=torch.int64))  # of the images of the keys; -1: of none
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))
        self.keys, self.key_rows = torch.zeros(0, output_dim), torch.zeros(0, dtype=torch.int64)  # not yet in the queue

    def set_sizes(self, images: int, batch_size: int) -> None:
        """Fill the queue with random keys; raise if a given queue is longer than the data set."""
        size = self.size
        if self.auto and size > images // 2:
            size = max(1, images // 2)
            log.info("pretext.queue=auto is %s, half of the images", counted(size, "key"))
        if size > images:
            raise UserError(f"pretext.queue={size} is longer than the data set: at most {images}")
        self.queue = F.normalize(torch.randn(size, self.queue.shape[1]), dim=1)
        self.rows = torch.full((size,), -1)

    def views(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Return the view of the query and that of the key."""
        return {"query": self.augment(images, rng), "key": self.augment(images, rng)}

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        """Return the loss, and the fraction of queries that are most similar to their own key."""
        views = self.views(batch["images"], rng)
        query = in_float32(self.projector, self.encoder(views["query"]))
        key = self.teacher(views["key"])
        with torch.autocast(query.device.type, enabled=False):
            query, key = F.normalize(query, dim=1), F.normalize(key, dim=1)
            rows = batch["rows"].to(key.device, non_blocking=True)
            logits = info_nce_logits(query, key, self.queue) / self.temperature
            logits[:, 1:] = logits[:, 1:].masked_fill(rows[:, None] == self.rows, float("-inf"))
        self.keys, self.key_rows = gathered(key), gathered(rows)
        loss = logits.logsumexp(1).mean() - logits[:, 0].mean()
        return {"loss": loss, "pretext_accuracy": (logits.detach().argmax(1) == 0).float().mean()}

    @torch.no_grad()
    def after_step(self, step: int, total: int) -> None:
        """Update the moving average, and replace the oldest keys of the queue by those of the batch."""
        self.teacher.follow(self, self.momentum)
        keys = self.keys[-len(self.queue) :]
        rows = (self.position + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[rows], self.rows[rows] = keys, self.key_rows[-len(self.queue) :]
        self.position.copy_((self.position + len(keys)) % len(self.queue))


def info_nce_logits(query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
    """Return similarities, `N x (1 + K)`: with the own key in column 0, then with the queue, `K x D`.

    Args:
        query, key: `N x D`, normalized.
        queue: `K x D`, normalized.
    """
    return torch.cat([(query * key).sum(1, keepdim=True), query @ queue.T], 1)
