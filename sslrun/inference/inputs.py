"""Inputs for inference: file names, PIL images, arrays and tensors are converted to pixels."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sslrun.base.errors import UserError
from sslrun.data.decode import UnreadableImage, decode_some, to_array
from sslrun.data.sources.folder import images_below

ImageLike = str | Path | Image.Image | np.ndarray | Tensor
Block = tuple[list[str | None], Tensor, list[str]]


def named_images(images: Sequence[str]) -> list[str]:
    """Return the files for names of files, folders (searched recursively) and `-` (names on standard input).

    Raises:
        UserError: no names, or a folder without images.
    """
    if not images:
        raise UserError("no images given: name files or folders")
    names = [n for name in images for n in (_on_standard_input() if name == "-" else [name]) if n]
    if not names:
        raise UserError("no images named on standard input")
    files: list[str] = []
    for name in names:
        path = Path(os.path.expanduser(name))
        if path.is_dir():
            files += images_below(path)
        else:
            files.append(str(path))
    return files


def _on_standard_input() -> list[str]:
    """Read file names from standard input, one per line, in any encoding."""
    lines = os.fsdecode(sys.stdin.buffer.read()).split("\n")
    return [line.removesuffix("\r") for line in lines]


def to_tensor(block: np.ndarray) -> Tensor:
    return torch.from_numpy(block).permute(0, 3, 1, 2)


def decoded_one(item: ImageLike, options: dict[str, Any]) -> tuple[np.ndarray, str, float]:
    """Decode one image.

    Returns:
        The pixels, `S x S x 3`; the reason if it cannot be read, else an empty string; and the fraction of its values
        outside the range.
    """
    if isinstance(item, str | Path):
        block, (reason,), (outside,) = decode_some([str(item)], **options)
        return block[0], reason, outside
    try:
        pixels, outside = to_array(_to_pil(item), **options)
        return pixels, "", outside
    except UnreadableImage as error:
        reason = str(error)
    except (OSError, ValueError) as error:  # a PIL image that is loaded lazily, or closed
        reason = f"damaged: {error}"
    return np.zeros((options["image_size"], options["image_size"], 3), np.uint8), reason, 0.0


def _to_pil(item: Image.Image | np.ndarray | Tensor) -> Image.Image:
    if isinstance(item, Image.Image):
        copy = item.copy()  # the caller's image must not change
        if tags := getattr(item, "tag_v2", None):
            copy.tag_v2 = tags  # type: ignore[attr-defined]  # of a TIFF: the kind of its values
        return copy
    if not isinstance(item, np.ndarray | Tensor):
        raise UserError(f"{item!r} is not an image: expected a path, PIL image, array or tensor")
    if isinstance(item, Tensor):
        if item.is_floating_point() and not (item.numel() and bool(((item >= 0) & (item <= 1)).all())):
            raise UserError("a float tensor must have values in [0, 1]; for 0 to 255 use uint8")
        x = (item * 255).round().clamp(0, 255).to(torch.uint8) if item.is_floating_point() else item
        item = x.permute(1, 2, 0).cpu().numpy() if x.ndim == 3 else x.cpu().numpy()
    if (
        item.dtype != np.uint8
        or not item.size
        or item.ndim not in (2, 3)
        or item.shape[2:] not in ((), (1,), (3,), (4,))
    ):
        shape = " x ".join(map(str, item.shape))
        raise UserError(f"an array of {item.dtype}, {shape}, is not an image: expected uint8, H x W x 3")
    return Image.fromarray(item[:, :, 0] if item.shape[2:] == (1,) else item)
