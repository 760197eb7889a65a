"""Gray images of more than 8 bits, as microscopes and scanners write them: their kinds and their values."""

import os
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image, TiffImagePlugin

from sslrun.base.text import small_percent

Range = Sequence[float]  # (low, high): the values that become black and white
SUFFIXES = (".png", ".tif", ".tiff")  # of the formats that can have more than 8 bits; Pillow reads others with 8
UNSIGNED, SIGNED, FLOAT, COMPLEX = (1,), (2,), (3,), (5, 6)  # values of TIFF's SampleFormat
WIDTH, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, SAMPLE_FORMAT = 256, 258, 259, 262, 277, 339  # tags of TIFF
OTHER_UNIT = 100  # width of a range of which values between 0 and 1 are not
WHITE_IS_ZERO = 0  # a value of PhotometricInterpretation


class NotRead(ValueError):
    """An image whose values Pillow reads wrongly; the message is the reason."""


class Kind(NamedTuple):
    """Kind of the values of a gray image of more than 8 bits."""

    bits: int
    type: Literal["unsigned", "signed", "float"]

    def __str__(self) -> str:
        return f"{self.bits} bits" + ("" if self.type == "unsigned" else f" ({self.type})")


def kind(image: Image.Image) -> Kind | None:
    """Return the kind of an opened image; None if it has 8 bits, as all images in color have when they are read."""
    if image.mode == "F":
        return Kind(32, "float")
    if not image.mode.startswith("I"):
        return None
    tags = getattr(image, "tag_v2", None)
    if tags:
        signed = next(iter(tags.get(SAMPLE_FORMAT, UNSIGNED))) in SIGNED
        return Kind(int(tags.get(BITS, (16,))[0]), "signed" if signed else "unsigned")
    in_memory = image.mode == "I" and image.format != "PNG"  # older Pillows read a PNG of 16 bits as I
    return Kind(32, "signed") if in_memory else Kind(16, "unsigned")


def values(image: Image.Image, of: Kind) -> np.ndarray:
    """Return the values of a loaded gray image, `H x W`, float; they are larger where it is brighter.

    Raises:
        NotRead: Pillow has mixed up the order of their bytes.
    """
    tags: Any = getattr(image, "tag_v2", {})
    big_endian = bool(tags) and tags.prefix == b"MM"
    if big_endian and tags.get(COMPRESSION, 1) != 1 and of.type != "unsigned":  # Pillow swaps the bytes twice
        raise NotRead(f"big-endian TIFF of {of}: not read; save it without compression")
    raw = np.asarray(image)
    if of == (32, "unsigned"):
        raw = raw.view(np.uint32)  # Pillow reads them as signed
    result: np.ndarray = raw.astype(np.float64 if of.bits == 32 and of.type != "float" else np.float32)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:  # Pillow inverts 8 bits only
        result = 2**of.bits - 1 - result if of.type == "unsigned" else 0 - result
    return result


def refuse_other_unit(gray: np.ndarray, of: Kind, gray_range: Range) -> None:
    """Refuse an image of floating point values from 0 to 1 next to a range of whole numbers, where it would be black.

    Raises:
        NotRead: its values are in another unit than the range.
    """
    if of.type != "float" or gray_range[1] - gray_range[0] < OTHER_UNIT:
        return
    finite = gray[np.isfinite(gray)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if 0 <= low < high <= 1:
        start, end = gray_range
        raise NotRead(
            f"values of {low:.2g} to {high:.2g}, but dataset.range is {start:g} to {end:g}: convert the image"
        )


def scaled(gray: np.ndarray, gray_range: Range) -> tuple[np.ndarray, float]:
    """Scale values from a range to 0 to 255; NaN and infinity become 0.

    Returns:
        The values as uint8, and the fraction of them that lies outside the range, without NaN and infinity.
    """
    low, high = gray_range
    finite = np.isfinite(gray)
    outside = np.count_nonzero(finite & ((gray < low) | (gray > high)))
    x = np.clip(np.where(finite, gray, low), low, high) - low
    x = 255 * x / (high - low)  # in this order, so that 257 v of 65535 is exactly v
    return np.ceil(x - 0.5).clip(0, 255).astype(np.uint8), outside / max(1, gray.size)


def usual_range(of: Kind) -> Range | None:
    """Return the range that a run without `dataset.range` reads a kind with; None if the kind has no usual range."""
    return (0, 65535) if of.type == "unsigned" and of.bits <= 16 else None


def unread_reason(path: str | os.PathLike[str]) -> str:
    """Return the reason that Pillow cannot read a kind of TIFF, which it names; empty if it is not that."""
    try:
        with open(path, "rb") as file:
            header = file.read(8)
            if header[2:4] in (b"+\0", b"\0+"):  # BigTIFF
                header += file.read(8)
            tags = TiffImagePlugin.ImageFileDirectory_v2(header)
            file.seek(tags.next)
            tags.load(file)
        bits, formats = tuple(tags.get(BITS, (1,))), tuple(tags.get(SAMPLE_FORMAT, UNSIGNED))
        samples = int(tags.get(SAMPLES, len(bits)))
    except Exception:  # of any type: it may be no TIFF, or a damaged one
        return ""
    if WIDTH not in tags or (max(bits) <= 8 and formats[0] in UNSIGNED):
        return ""
    inverted = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO
    names = {FLOAT: " float", SIGNED: " signed", COMPLEX: " complex"}
    name = next((n for values, n in names.items() if formats[0] in values), "")
    found = f"{f'{samples} x ' * (samples > 1)}{bits[0]}-bit{name}{', 0 is white' * inverted}"
    found += ", big-endian" if header.startswith(b"M") else ""
    gray = f"16-bit gray{' in which 0 is black' * inverted}"
    return f"TIFF of {found}: not read; convert it to {gray} or 8-bit color"


def clipped_text(outside: Sequence[float], gray_range: Range, n: int, where: str = "") -> str:
    """Return a sentence on the values outside the range; empty if there are none.

    Args:
        outside: the fraction of the values of each image that lies outside.
        n: number of images.
        where: such as ` in train`.
    """
    share = [f for f in outside if f > 0]
    if not share:
        return ""
    low, high = gray_range
    return (
        f"{len(share):,} of {n:,} image{'s' * (n != 1)}{where} {'has' if n == 1 else 'have'} values outside "
        f"dataset.range=[{low:g},{high:g}] ({small_percent(float(np.mean(share)))} of their values), clipped"
    )
