"""What a network in use is given: names of files, PIL images, arrays and tensors, turned into pixels."""

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
from sslrun.data.decode import decode_some, find_images, to_array

ImageLike = str | Path | Image.Image | np.ndarray | Tensor
Block = tuple[list[str | None], Tensor, list[str]]


def named_images(images: Sequence[str]) -> list[str]:
    """Return the files that names stand for: files, pictures in and below folders, and `-`, names on standard input.

    Raises:
        UserError: nothing is named, or a folder has no picture.
    """
    if not images:
        raise UserError("no image named: say image.jpg, or a folder")
    names = [n for name in images for n in (_on_standard_input() if name == "-" else [name]) if n]
    if not names:
        raise UserError("no picture named on standard input")
    files: list[str] = []
    for name in names:
        path = Path(os.path.expanduser(name))
        if path.is_dir():
            inside = find_images(path)
            if not inside:
                raise UserError(f"no pictures in {path} (looked for .jpg .png .webp .bmp .gif .tif)")
            files += inside
        else:
            files.append(str(path))
    return files


def _on_standard_input() -> list[str]:
    """Return one file name a line, whatever its bytes are."""
    lines = os.fsdecode(sys.stdin.buffer.read()).split("\n")
    return [line.removesuffix("\r") for line in lines]


def to_tensor(block: np.ndarray) -> Tensor:
    return torch.from_numpy(block).permute(0, 3, 1, 2)


def decoded_one(item: ImageLike, how: dict[str, Any]) -> tuple[np.ndarray, str]:
    """Return a picture's pixels, `S x S x 3`, and why it could not be read."""
    if isinstance(item, str | Path):
        block, (reason,) = decode_some([str(item)], **how)
        return block[0], reason
    try:
        return to_array(_to_pil(item), **how), ""
    except (OSError, ValueError) as error:  # of a picture that is read when it is needed, or is closed
        return np.zeros((how["image_size"], how["image_size"], 3), np.uint8), f"damaged: {error}"


def _to_pil(item: Image.Image | np.ndarray | Tensor) -> Image.Image:
    if isinstance(item, Image.Image):
        return item.copy()  # the caller's stays as it is
    if not isinstance(item, np.ndarray | Tensor):
        raise UserError(f"{item!r} is no picture: give a path, a PIL picture, an array or a tensor")
    if isinstance(item, Tensor):
        if item.is_floating_point() and not (item.numel() and bool(((item >= 0) & (item <= 1)).all())):
            raise UserError("a tensor of floats must lie in [0, 1]; one of 0 to 255 must be uint8")
        x = (item * 255).round().clamp(0, 255).to(torch.uint8) if item.is_floating_point() else item
        item = x.permute(1, 2, 0).cpu().numpy() if x.ndim == 3 else x.cpu().numpy()
    if (
        item.dtype != np.uint8
        or not item.size
        or item.ndim not in (2, 3)
        or item.shape[2:] not in ((), (1,), (3,), (4,))
    ):
        raise UserError(
            f"an array of {item.dtype}, {' x '.join(map(str, item.shape))}, is no picture: give H x W x 3, uint8"
        )
    return Image.fromarray(item[:, :, 0] if item.shape[2:] == (1,) else item)
