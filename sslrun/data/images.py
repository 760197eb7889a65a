"""Decoded pictures, from which batches are gathered without copying the rest."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

DIGEST = 16  # bytes


class Images:
    """N pictures: rows of one or several arrays that lie in memory, on a GPU, or are mapped from a file.

    Indexing by positions or a slice gathers a batch, `B x 3 x S x S` uint8 with the channels last in memory. In main
    memory numpy does it: batches are gathered in a thread beside the network, where torch would start a second team of
    threads, and once threads outnumber cores OpenMP stops spinning, which slows the network by 5 to 15 %.

    Args:
        tensors: arrays `M x S x S x 3`, uint8, on one device.
        digests: a hash of each picture of all parts, `sum of M x 16`, uint8.
        index: N positions in all parts together; by default all.
    """

    def __init__(self, tensors: Sequence[Tensor], digests: np.ndarray, index: Tensor | None = None) -> None:
        self.tensors, self.digests = list(tensors), digests
        self.index = torch.arange(sum(map(len, tensors))) if index is None else index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: Tensor | slice) -> Tensor:
        rows = self.index[key]
        if self.device.type != "cpu":  # then all are in one part
            return self.tensors[0].index_select(0, rows.to(self.device, non_blocking=True)).permute(0, 3, 1, 2)
        if len(self.tensors) == 1:
            return torch.from_numpy(self.tensors[0].numpy().take(rows.numpy(), axis=0)).permute(0, 3, 1, 2)
        out = np.empty((len(rows), *self.tensors[0].shape[1:]), dtype=np.uint8)
        first = 0
        for tensor in self.tensors:
            inside = ((rows >= first) & (rows < first + len(tensor))).numpy()
            out[inside] = tensor.numpy().take(rows.numpy()[inside] - first, axis=0)
            first += len(tensor)
        return torch.from_numpy(out).permute(0, 3, 1, 2)

    def __add__(self, other: "Images") -> "Images":
        digests = np.concatenate([self.digests, other.digests])
        index = torch.cat([self.index, other.index + sum(map(len, self.tensors))])
        return Images([*self.tensors, *other.tensors], digests, index)

    def split(self, batch_size: int) -> Iterator[Tensor]:
        """Yield all pictures in batches."""
        for i in range(0, len(self), batch_size):
            yield self[i : i + batch_size]

    def take(self, positions: np.ndarray) -> "Images":
        """Return the pictures at these positions; the arrays stay where they are."""
        return Images(self.tensors, self.digests, self.index[torch.from_numpy(positions)])

    def to(self, device: torch.device) -> "Images":
        """Return the pictures on another device, in one array without the rows that were not taken."""
        if device == self.device:
            return self
        out = torch.empty(len(self), *self.tensors[0].shape[1:], dtype=torch.uint8, device=device)
        for i, batch in enumerate(self.split(4096)):
            out[i * 4096 : i * 4096 + len(batch)] = batch.permute(0, 2, 3, 1).to(device)
        return Images([out], self.digests[self.index.numpy()])

    def on(self, device: torch.device) -> "Images":
        """Return the images on a device if they fit in half of its free memory, else where they are."""
        if device.type == "cuda" and self.nbytes > torch.cuda.mem_get_info()[0] // 2:
            return self
        return self.to(device)

    @property
    def device(self) -> torch.device:
        """Return where the arrays are."""
        return self.tensors[0].device

    @property
    def image_size(self) -> int:
        """Return the side in px."""
        return self.tensors[0].shape[1]

    @property
    def nbytes(self) -> int:
        """Return the size of the N pictures in bytes."""
        return len(self) * self.image_size**2 * 3

    def fingerprint(self) -> Any:
        """Return a hash of all pixels, in their order, which does not depend on where the pictures lie."""
        return hashlib.sha256(self.digests[self.index.numpy()].tobytes())


def digests(array: np.ndarray) -> np.ndarray:
    """Return a hash of each picture of a contiguous array, `N x 16` uint8."""
    hashes = b"".join(hashlib.blake2b(image.data, digest_size=DIGEST).digest() for image in array)
    return np.frombuffer(hashes, dtype=np.uint8).reshape(-1, DIGEST)
