"""Decoding one picture file, and finding those in a folder."""

import hashlib
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError

from sslrun.base.files import file_hash

VERSION = f"3 {PIL.__version__}"  # of this decoder: raise it when the same file comes to decode to other pixels
NOT_ITS_FAULT = "cannot be opened"  # such a file may be readable the next time
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
Resize = Literal["crop", "pad", "squash"]
Channels = Literal["rgb", "gray"]


class UnreadableImage(Exception):
    """A picture file that cannot be decoded; the message gives the reason, without the path."""


def decode(path: str | Path, image_size: int, resize: Resize = "crop", channels: Channels = "rgb") -> np.ndarray:
    """Decode one picture file (the first frame of an animation), as an eye would see it.

    EXIF orientation is applied, transparency lies over white, 16-bit and CMYK pictures become 8-bit RGB.

    Returns:
        `image_size x image_size x 3`, uint8. `crop` keeps the aspect ratio and cuts the middle, `pad` keeps it and
        adds a grey border, `squash` does not keep it. `gray` repeats the luminance three times.

    Raises:
        UnreadableImage: the file is missing, empty, truncated, too large to be true, or not a picture.
    """
    with opened(path) as image:
        return to_array(image, image_size, resize, channels)


def ignore_pillow_warnings() -> None:
    """Have this process say nothing of damaged or strange files, which are none of a user's doing."""
    warnings.filterwarnings("ignore", module="PIL")


@contextmanager
def opened(path: str | Path) -> Iterator[Image.Image]:
    """Open a picture file; whatever goes wrong with it, here or while it is worked on, becomes one exception.

    Raises:
        UnreadableImage: the file is missing, empty, truncated, too large to be true, or not a picture.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path):
            raise UnreadableImage("not a file")  # a pipe would be waited for
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except UnreadableImage:
        raise
    except FileNotFoundError:
        raise UnreadableImage("no such file") from None
    except IsADirectoryError:
        raise UnreadableImage("a folder, not a file") from None
    except UnidentifiedImageError:
        size = os.stat(path).st_size
        raise UnreadableImage("the file is empty" if size == 0 else "not a picture in a known format") from None
    except Image.DecompressionBombError:
        raise UnreadableImage("more pixels than any photograph has: refused") from None
    except MemoryError:
        raise UnreadableImage(f"{NOT_ITS_FAULT}: not enough memory") from None
    except Exception as error:  # a file may hold anything, and Pillow raise anything
        if isinstance(error, OSError) and error.errno:
            raise UnreadableImage(f"{NOT_ITS_FAULT}: {error.strerror}") from None
        raise UnreadableImage(f"damaged: {error or type(error).__name__}") from None


def to_array(image: Image.Image, image_size: int, resize: Resize, channels: Channels) -> np.ndarray:
    """Turn an opened picture into the array that `decode` describes."""
    if image.format in ("JPEG", "MPO"):
        image.draft("RGB", (2 * image_size, 2 * image_size))  # it is decoded small: several times faster
    image = to_rgb(image)
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
    return np.asarray(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn an opened picture upright, lay it over white, and make it 8-bit RGB."""
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0, neginf=0)
        most = values.max(initial=0)
        deep = image.mode.startswith("I;16") or most > 255
        top = 65535.0 if deep else 1.0 if image.mode == "F" and most <= 1 else 255.0
        image = Image.fromarray((values.clip(0, top) * (255 / top)).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def decode_some(
    files: Sequence[str], image_size: int, resize: Resize, channels: Channels
) -> tuple[np.ndarray, list[str]]:
    """Decode a few files.

    Returns:
        `N x image_size x image_size x 3`, uint8, and for each why it could not be read, in which case it is black, or
        the empty string.
    """
    block = np.zeros((len(files), image_size, image_size, 3), dtype=np.uint8)
    reasons = [""] * len(files)
    for i, path in enumerate(files):
        try:
            block[i] = decode(path, image_size, resize, channels)
        except UnreadableImage as error:
            reasons[i] = str(error)
    return block, reasons


class Header(NamedTuple):
    """What a picture file says of itself; `digest` is a hash of its bytes, `format` is empty if it is no picture."""

    digest: bytes
    format: str
    mode: str
    width: int
    height: int


def read_headers(files: Sequence[str]) -> list[Header]:
    """Read some files and the headers of the pictures in them; a file that cannot be read has an empty digest."""
    results = []
    for path in files:
        digest, about = b"", ("", "", 0, 0)
        with suppress(OSError, UnreadableImage), opened(path) as image:  # decoding tells what is wrong with a file
            about = (str(image.format), image.mode, *image.size)
        if os.path.isfile(path):
            with suppress(OSError):
                digest = file_hash(path, partial(hashlib.blake2b, digest_size=16)).digest()
        results.append(Header(digest, *about))
    return results


def is_image(name: str) -> bool:
    """Tell by its suffix whether a file name is a picture's."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def find_images(folder: str | Path) -> list[str]:
    """Return the picture files in and below a folder in an order that is the same on every machine.

    Links are followed, but not to a folder above or twice to the same; hidden files and folders are left out.
    """
    results: list[str] = []
    above = [os.stat(p) for p in Path(folder).resolve().parents]
    seen = {(s.st_dev, s.st_ino) for s in above}
    for top, dirs, names in os.walk(folder, followlinks=True):
        here = os.stat(top)
        if (here.st_dev, here.st_ino) in seen:
            dirs.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        dirs[:] = sorted(d for d in dirs if not d.startswith("."))
        results += [os.path.join(top, n) for n in names if is_image(n) and not n.startswith(".")]
    return sorted(results, key=lambda path: relative(path, folder))


def relative(path: str, folder: str | Path) -> str:
    """Return the path of a file as it is seen from a folder above it, with forward slashes."""
    return path[len(os.path.join(folder, "")) :].replace(os.sep, "/")
