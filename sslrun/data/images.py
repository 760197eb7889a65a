"""Decoded images, from which batches are gathered by index."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

DIGEST = 16  # bytes


@dataclass(frozen=True)
class Original:
    """What the images of an array were read from, to read them at another size.

    Attributes:
        blocks: (side in px, positions in the array) -> blocks `B x S x S x 3`, uint8.
        key: side in px -> a hash of the files or the array, and of how they are read.
        settings: how they are read: `channels`, and of files `resize` and `range`.
    """

    blocks: Callable[[int, np.ndarray], Iterator[np.ndarray]]
    key: Callable[[int], str]
    settings: Mapping[str, Any]


class Images:
    """N images: rows of one or several arrays in main memory, on a GPU, or memory-mapped from a file.

    Indexing with positions or a slice gathers a batch, `B x 3 x S x S` uint8 in channels-last memory format. On the CPU
    NumPy gathers it, since batches are gathered in a background thread, where torch would start a second thread pool;
    with more threads than cores OpenMP stops spinning, which slows training by 5 to 15 %.

    Args:
        tensors: arrays `M x S x S x 3`, uint8, on one device.
        digests: a hash of each image of all arrays, `sum of M x 16`, uint8.
        index: N positions in the concatenation of the arrays; by default all.
        originals: of each array; empty if its images cannot be read again.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        digests: np.ndarray,
        index: Tensor | None = None,
        originals: Sequence[Original] = (),
    ) -> None:
        self.tensors, self.digests, self.originals = list(tensors), digests, list(originals)
        self.index = torch.arange(sum(map(len, tensors))) if index is None else index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: Tensor | slice) -> Tensor:
        rows = self.index[key]
        if self.device.type != "cpu":  # where there is only one array
            return self.tensors[0].index_select(0, rows.to(self.device, non_blocking=True)).permute(0, 3, 1, 2)
        if len(self.tensors) == 1:
            return torch.from_numpy(self.tensors[0].numpy().take(rows.numpy(), axis=0)).permute(0, 3, 1, 2)
        out = np.empty((len(rows), *self.tensors[0].shape[1:]), dtype=np.uint8)
        offset = 0
        for tensor in self.tensors:
            mask = ((rows >= offset) & (rows < offset + len(tensor))).numpy()
            out[mask] = tensor.numpy().take(rows.numpy()[mask] - offset, axis=0)
            offset += len(tensor)
        return torch.from_numpy(out).permute(0, 3, 1, 2)

    def __add__(self, other: "Images") -> "Images":
        digests = np.concatenate([self.digests, other.digests])
        index = torch.cat([self.index, other.index + sum(map(len, self.tensors))])
        return Images([*self.tensors, *other.tensors], digests, index, [*self.originals, *other.originals])

    def split(self, batch_size: int) -> Iterator[Tensor]:
        """Yield all images in batches."""
        for i in range(0, len(self), batch_size):
            yield self[i : i + batch_size]

    def take(self, positions: np.ndarray) -> "Images":
        """Return the images at these positions; the arrays are shared, not copied."""
        return Images(self.tensors, self.digests, self.index[torch.from_numpy(positions)], self.originals)

    def at(self, image_size: int) -> Iterator[Tensor]:
        """Yield the images at another size, read again from where they came from, in blocks `B x 3 x S x S`, uint8.

        Every image is read once, in the order of the arrays: that of `np.unique(index)`.
        """
        unique, offset = np.unique(self.index.numpy()), 0
        for tensor, original in zip(self.tensors, self.originals, strict=True):
            rows = unique[(unique >= offset) & (unique < offset + len(tensor))] - offset
            for block in original.blocks(image_size, rows):
                yield torch.from_numpy(block).permute(0, 3, 1, 2)
            offset += len(tensor)

    def key_at(self, image_size: int) -> str:
        """Return a hash of the images at another size: of what they are read from, how, and in which order."""
        digest = hashlib.sha256(" ".join(original.key(image_size) for original in self.originals).encode())
        digest.update(self.index.numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device) -> "Images":
        """Return the images on a device; on another device they are copied into one array of N rows."""
        if device.type == self.device.type and device.index in (None, self.device.index):  # "cuda" is the current one
            return self
        out = torch.empty(len(self), *self.tensors[0].shape[1:], dtype=torch.uint8, device=device)
        for i, batch in enumerate(self.split(4096)):
            out[i * 4096 : i * 4096 + len(batch)] = batch.permute(0, 2, 3, 1).to(device)
        return Images([out], self.digests[self.index.numpy()])

    def on(self, device: torch.device) -> "Images":
        """Return the images on a device if they fit into half of the memory that is free there, else unchanged."""
        if device.type == "cuda":
            unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by earlier trainings
            if self.nbytes > (torch.cuda.mem_get_info(device)[0] + unused) // 2:
                return self
        return self.to(device)

    @property
    def device(self) -> torch.device:
        """Return the device of the arrays."""
        return self.tensors[0].device

    @property
    def image_size(self) -> int:
        """Return the height and width in px."""
        return self.tensors[0].shape[1]

    @property
    def nbytes(self) -> int:
        """Return the size of the N images in bytes."""
        return len(self) * self.image_size**2 * 3

    def fingerprint(self) -> Any:
        """Return a hash of all pixels, in order, independent of the device and the number of arrays."""
        return hashlib.sha256(self.digests[self.index.numpy()].tobytes())


def digests(array: np.ndarray) -> np.ndarray:
    """Return a hash of each image of a contiguous array, `N x 16` uint8."""
    hashes = b"".join(hashlib.blake2b(image.data, digest_size=DIGEST).digest() for image in array)
    return np.frombuffer(hashes, dtype=np.uint8).reshape(-1, DIGEST)
