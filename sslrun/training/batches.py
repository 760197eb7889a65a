"""Batches: their order, and gathering them ahead of the step that needs them."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from sslrun.augment import ORDER, generator
from sslrun.data.images import Images
from sslrun.device import Device


def gathered(
    images: Tensor | Images, start: int, total: int, per_epoch: int, seed: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield every step, its rows, and their pictures, which are gathered while the step before is computed."""
    order: tuple[int, tuple[Tensor, ...]] = (-1, ())

    def rows_of(step: int) -> Tensor:
        nonlocal order
        epoch, i = divmod(step, per_epoch)
        if order[0] != epoch:
            rows = torch.randperm(len(images), generator=generator(seed, ORDER, epoch))
            order = (epoch, rows.tensor_split(per_epoch))
        return order[1][i]

    with ThreadPoolExecutor(1) as beside:

        def gather(step: int) -> Future[tuple[int, Tensor, Tensor]]:
            rows = rows_of(step)
            return beside.submit(lambda: (step, rows, images[rows]))

        coming = gather(start) if start < total else None
        for step in range(start, total):
            assert coming is not None
            here, coming = coming, gather(step + 1) if step + 1 < total else None
            yield here.result()


def batch_of(pixels: Tensor, labels: Tensor | None, rows: Tensor, device: Device) -> dict[str, Tensor]:
    batch = {"images": device.floats(pixels)}
    if labels is not None:
        batch["labels"] = labels[rows.to(labels.device)].to(device.torch, non_blocking=True)
    return batch
