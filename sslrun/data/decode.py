"""Decoding image files."""

import hashlib
import importlib.util
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError, features

from sslrun.base.files import file_hash
from sslrun.data import depth
from sslrun.data.depth import Range

TRANSIENT = "cannot be opened"  # start of a reason that may no longer hold next time
FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
HEIF = importlib.util.find_spec("pillow_heif") is not None  # an extra
VERSION = f"5 {PIL.__version__}{' heif' * HEIF}"  # of this decoder: raise it when a change alters the decoded pixels
if features.check("avif"):
    FORMATS, SUFFIXES = (*FORMATS, "AVIF"), SUFFIXES | {".avif"}
if HEIF:
    FORMATS, SUFFIXES = (*FORMATS, "HEIF"), SUFFIXES | {".heic", ".heif", ".hif"}
CONVERTIBLE = (
    ".jp2", ".j2k", ".jxl", ".svg", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".psd", ".pdf",
    ".eps", ".dcm", ".nii", ".npy", ".czi", ".nd2", ".lif", ".svs", ".ppm", ".pgm", ".exr", ".hdr",
)  # fmt: skip
# Image formats that are not read, by suffix -> what to do.
EXTRAS = {
    **{s: "pip install sslrun[heif] to read HEIC" for s in (".heic", ".heif", ".hif") if s not in SUFFIXES},
    **{s: "update Pillow to read AVIF" for s in (".avif",) if s not in SUFFIXES},
    **dict.fromkeys(CONVERTIBLE, "convert them to JPEG or PNG"),
}
Resize = Literal["crop", "pad", "squash"]
Channels = Literal["rgb", "gray"]


class UnreadableImage(Exception):
    """An image file that cannot be decoded; the message is the reason, without the path."""


def decode(
    path: str | Path,
    image_size: int,
    resize: Resize = "crop",
    channels: Channels = "rgb",
    gray_range: Range | None = None,
) -> np.ndarray:
    """Decode an image file, or the first frame of an animation, to 8-bit RGB.

    The EXIF orientation is applied, transparent pixels are blended with white, 16-bit and CMYK images are converted.

    Args:
        gray_range: the values of gray images of more than 8 bits that become black and white; by default 0 and 65,535,
            and signed, 32-bit and floating point images are not read.

    Returns:
        `image_size x image_size x 3`, uint8. `crop` keeps the aspect ratio and crops the center, `pad` keeps it and
        adds a gray border, `squash` stretches the image. `gray` repeats the luminance in all three channels.

    Raises:
        UnreadableImage: the file is missing, empty, truncated, not an image, or has too many pixels or no known range.
    """
    return read(path, image_size, resize, channels, gray_range)[0]


def read(
    path: str | Path, image_size: int, resize: Resize, channels: Channels, gray_range: Range | None
) -> tuple[np.ndarray, float]:
    """Return what `decode` returns, and the fraction of the image's values that lies outside `gray_range`."""
    with opened(path) as image:
        return to_array(image, image_size, resize, channels, gray_range)


def ignore_pillow_warnings() -> None:
    """Silence Pillow's warnings about damaged or unusual files in this process."""
    warnings.filterwarnings("ignore", module="PIL")


@cache
def _register_heif() -> None:
    """Let Pillow read HEIC, once in each process."""
    with suppress(Exception):  # of a broken installation: the other formats are read all the same
        from pillow_heif import register_heif_opener

        register_heif_opener()


@contextmanager
def opened(path: str | Path) -> Iterator[Image.Image]:
    """Open an image file; every error, here or in the body of the `with` statement, becomes an `UnreadableImage`.

    Raises:
        UnreadableImage: the file is missing, empty, truncated, not an image, or has too many pixels.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path):
            raise UnreadableImage("not a file")  # opening a pipe would block
        if HEIF:
            _register_heif()
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except UnreadableImage:
        raise
    except depth.NotRead as error:
        raise UnreadableImage(str(error)) from None
    except FileNotFoundError:
        raise UnreadableImage("no such file") from None
    except IsADirectoryError:
        raise UnreadableImage("a folder, not a file") from None
    except UnidentifiedImageError:
        size = os.stat(path).st_size
        hint = EXTRAS.get(os.path.splitext(path)[1].lower(), "").replace("them", "it")
        reason = f"not an image in a supported format{f'; {hint}' if hint else ''}"
        raise UnreadableImage("the file is empty" if size == 0 else depth.unread_reason(path) or reason) from None
    except Image.DecompressionBombError:
        raise UnreadableImage("too many pixels (a decompression bomb?)") from None
    except MemoryError:
        raise UnreadableImage(f"{TRANSIENT}: not enough memory") from None
    except Exception as error:  # Pillow raises errors of any type for damaged files
        if isinstance(error, OSError) and error.errno:
            raise UnreadableImage(f"{TRANSIENT}: {error.strerror}") from None
        raise UnreadableImage(f"damaged: {error or type(error).__name__}") from None


def to_array(
    image: Image.Image, image_size: int, resize: Resize, channels: Channels, gray_range: Range | None
) -> tuple[np.ndarray, float]:
    """Convert an opened image to what `read` returns."""
    if image.format in ("JPEG", "MPO"):
        image.draft("RGB", (2 * image_size, 2 * image_size))  # decode at a reduced size: several times faster
    image, outside = to_rgb(image, gray_range)
    size = (image_size, image_size)
    if image.size == size:
        pass
    elif resize == "crop":
        image = ImageOps.fit(image, size, Image.Resampling.BILINEAR)
    elif resize == "pad":
        image = ImageOps.pad(image, size, Image.Resampling.BILINEAR, color=(128, 128, 128))
    else:
        image = image.resize(size, Image.Resampling.BILINEAR)
    if channels == "gray":
        image = image.convert("L").convert("RGB")
    return np.asarray(image), outside


def to_rgb(image: Image.Image, gray_range: Range | None) -> tuple[Image.Image, float]:
    """Apply an opened image's EXIF orientation, blend it with white, and convert it to 8-bit RGB.

    Returns:
        The image, and the fraction of its values that lies outside `gray_range`, see `decode`.

    Raises:
        UnreadableImage: a gray image of signed, 32-bit or floating point values without a range.
    """
    image.load()
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:  # of any type: a damaged EXIF block, in an image that is not damaged
        pass
    outside = 0.0
    if kind := depth.kind(image):
        limits = gray_range or depth.usual_range(kind)
        if limits is None:
            raise UnreadableImage(
                f"gray image of {kind}, but there is no dataset.range to read it with; convert it to 8 bits"
            )
        values = depth.values(image, kind)
        depth.refuse_other_unit(values, kind, limits)
        gray, outside = depth.scaled(values, limits)
        image = Image.fromarray(gray)
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB"), outside


def decode_some(
    files: Sequence[str], image_size: int, resize: Resize, channels: Channels, gray_range: Range | None
) -> tuple[np.ndarray, list[str], list[float]]:
    """Decode several files.

    Returns:
        `N x image_size x image_size x 3`, uint8; for each file the reason why it could not be read (its image is
        black), or an empty string; and the fraction of its values that lies outside `gray_range`.
    """
    block = np.zeros((len(files), image_size, image_size, 3), dtype=np.uint8)
    reasons, outside = [""] * len(files), [0.0] * len(files)
    for i, path in enumerate(files):
        try:
            block[i], outside[i] = read(path, image_size, resize, channels, gray_range)
        except UnreadableImage as error:
            reasons[i] = str(error)
    return block, reasons, outside


class Header(NamedTuple):
    """Header of an image file.

    Attributes:
        digest: hash of the file's bytes.
        format: empty if it is not an image.
        kind: of a gray image of more than 8 bits, such as `16 bits`; else empty.
    """

    digest: bytes
    format: str
    mode: str
    width: int
    height: int
    kind: str


def read_headers(files: Sequence[str]) -> list[Header]:
    """Read the headers and hashes of several image files; a file that cannot be read has an empty digest."""
    results = []
    for path in files:
        digest, header = b"", ("", "", 0, 0, "")
        with suppress(OSError, UnreadableImage), opened(path) as image:  # decoding reports what is wrong with a file
            header = (str(image.format), image.mode, *image.size, str(depth.kind(image) or ""))
        if os.path.isfile(path):
            with suppress(OSError):
                digest = file_hash(path, partial(hashlib.blake2b, digest_size=16)).digest()
        results.append(Header(digest, *header))
    return results


def is_image(name: str) -> bool:
    """Return whether a file name has the suffix of an image."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def relative(path: str, folder: str | Path) -> str:
    """Return the path of a file relative to a folder above it, with forward slashes."""
    return path[len(os.path.join(folder, "")) :].replace(os.sep, "/")
