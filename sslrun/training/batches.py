"""Batches of a training: their order, and prefetching in a thread."""

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from sslrun.augment import ORDER, VIEWS, Rng, generator
from sslrun.base import processes
from sslrun.base.errors import UserError
from sslrun.data.balance import balanced_order
from sslrun.data.images import Images
from sslrun.device import Device


class Step(NamedTuple):
    """The input of a training step.

    Attributes:
        step: number of the step, from 0.
        batch: `images`, `n x 3 x S x S`, floats in [0, 1], and `labels`, n, if there are any, on the device; `rows`, n,
            their positions, on the CPU. They are this process's share of the batch.
        rng: random numbers for the views.
        images: number of images of the batch, of all processes; the same in every step.
    """

    step: int
    batch: dict[str, Tensor]
    rng: Rng
    images: int


class Batches:
    """Batches of one size, from a stream of images. They depend only on (seed, step).

    The stream has the images of the first epoch in random order, then those of the second, and so on: a batch may have
    images of two epochs.

    Args:
        images: `N x 3 x S x S`, uint8, on any device.
        labels: N, or None.
        batch_size: images per batch, of all processes together; all images, if there are fewer.
        total: number of steps of the whole training.
        balanced: draw an epoch's images by `balanced_order`, instead of every image once per epoch; needs labels.

    Attributes:
        size: number of images of every batch.

    Raises:
        UserError: there are more processes than images in a batch.
    """

    def __init__(
        self,
        images: Tensor | Images,
        labels: Tensor | None,
        batch_size: int,
        total: int,
        seed: int,
        device: Device,
        balanced: bool = False,
    ) -> None:
        self.images, self.labels, self.total, self.seed, self.device = images, labels, total, seed, device
        self._balanced_by = labels.cpu() if balanced and labels is not None else None
        self.size = min(batch_size, len(images))
        if self.size < processes.count():
            raise UserError(
                f"{processes.count()} processes need batches of at least as many images, found {self.size}: start "
                "fewer, or set a larger train.batch_size"
            )
        self._share = processes.share(self.size)

    def epochs(self, steps: int) -> float:
        """Return the number of epochs after this many steps."""
        return steps * self.size / len(self.images)

    def after(self, done: int) -> Iterator[Step]:
        """Yield the steps after the first `done`. The next batch is prefetched in a thread during each step."""
        with ThreadPoolExecutor(1) as thread:
            submitted = (thread.submit(self._gather, rows[self._share]) for rows in self._rows(done))
            prefetched: deque[Future[tuple[Tensor, Tensor]]] = deque(itertools.islice(submitted, 1))
            for step in range(done, self.total):
                prefetched.extend(itertools.islice(submitted, 1))
                rows, pixels = prefetched.popleft().result()
                batch = batch_of(pixels, self.labels, rows, self.device)
                numbers = generator(self.seed, VIEWS, step)
                rng = Rng(numbers, self.size, self._share) if processes.count() > 1 else Rng(numbers)
                yield Step(step, batch, rng, self.size)

    def _rows(self, done: int) -> Iterator[Tensor]:
        """Yield the rows of every step after the first `done`."""
        epoch, used = divmod(done * self.size, len(self.images))
        rows = self._order(epoch)[used:]
        for _ in range(done, self.total):
            if len(rows) < self.size:
                epoch += 1
                rows = torch.cat([rows, self._order(epoch)])
            yield rows[: self.size]
            rows = rows[self.size :]

    def _order(self, epoch: int) -> Tensor:
        """Return the rows of an epoch, in their order."""
        numbers = generator(self.seed, ORDER, epoch)
        if self._balanced_by is not None:
            return balanced_order(self._balanced_by, numbers)
        return torch.randperm(len(self.images), generator=numbers)

    def _gather(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        pixels = self.images[rows]
        on_host = self.device.torch.type == "cuda" and pixels.device.type == "cpu"
        return rows, pixels.pin_memory() if on_host else pixels  # from pinned memory the copy is asynchronous


def batch_of(pixels: Tensor, labels: Tensor | None, rows: Tensor, device: Device) -> dict[str, Tensor]:
    """Return the batch of the given rows, on the device.

    Args:
        pixels: images of these rows, `N x 3 x S x S`, uint8.
        labels: labels of all rows, or None.
        rows: N indices.
    """
    batch = {"images": device.floats(pixels), "rows": rows}
    if labels is not None:
        batch["labels"] = labels[rows.to(labels.device, non_blocking=True)].to(device.torch, non_blocking=True)
    return batch
