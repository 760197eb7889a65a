"""Decoding picture files into one uint8 array, once: the result is kept under a cache folder."""

import functools
import hashlib
import os
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sslrun.config import UserError
from sslrun.console import log, progress

VERSION = 1  # of this decoder: raise it when the same file comes to decode to other pixels
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
Resize = Literal["crop", "pad", "squash"]
Channels = Literal["rgb", "gray"]


class UnreadableImage(Exception):
    """A picture file that cannot be decoded; the message gives the reason, without the path."""


def decode(path: Path, image_size: int, resize: Resize = "crop", channels: Channels = "rgb") -> np.ndarray:
    """Decode one picture file (the first frame of an animation), as an eye would see it.

    EXIF orientation is applied, transparency lies over white, 16-bit and CMYK pictures become 8-bit RGB.

    Returns:
        `image_size x image_size x 3`, uint8. `crop` keeps the aspect ratio and cuts the middle, `pad` keeps it and
        adds a grey border, `squash` does not keep it. `gray` repeats the luminance three times.

    Raises:
        UnreadableImage: the file is missing, empty, truncated, too large to be true, or not a picture.
    """
    try:
        with Image.open(path) as image:
            return to_array(image, image_size, resize, channels)
    except FileNotFoundError:
        raise UnreadableImage("no such file") from None
    except IsADirectoryError:
        raise UnreadableImage("a folder, not a file") from None
    except UnidentifiedImageError:
        size = path.stat().st_size
        raise UnreadableImage("the file is empty" if size == 0 else "not a picture in a known format") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnreadableImage("more pixels than any photograph has: refused") from None
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError, OverflowError) as error:
        raise UnreadableImage(f"damaged: {error}") from None


def to_array(image: Image.Image, image_size: int, resize: Resize, channels: Channels) -> np.ndarray:
    """Turn an opened picture into the array that `decode` describes."""
    if image.format == "JPEG":
        image.draft("RGB", (2 * image_size, 2 * image_size))  # the JPEG is decoded small: several times faster
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float32)
        top = 65535.0 if image.mode.startswith("I;16") or values.max(initial=0) > 255 else 255.0
        image = Image.fromarray((values.clip(0, top) * (255 / top)).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    image = image.convert("RGB")
    size = (image_size, image_size)
    if resize == "crop":
        image = ImageOps.fit(image, size, Image.Resampling.BILINEAR)
    elif resize == "pad":
        image = ImageOps.pad(image, size, Image.Resampling.BILINEAR, color=(128, 128, 128))
    else:
        image = image.resize(size, Image.Resampling.BILINEAR)
    if channels == "gray":
        image = image.convert("L").convert("RGB")
    return np.asarray(image)


def decode_all(
    files: Sequence[Path], image_size: int, resize: Resize, channels: Channels, max_bad_fraction: float
) -> tuple[np.ndarray, np.ndarray]:
    """Decode many files on all cores; a second call with the same files and settings reads the cache.

    Returns:
        The pictures, `N x image_size x image_size x 3` uint8, and a boolean array of length `len(files)`: which of
        the files they are. Unreadable ones are left out and named in the log.

    Raises:
        UserError: more than `max_bad_fraction` of the files cannot be read.
    """
    key = _cache_key(files, image_size, resize, channels)
    cached = cache_folder() / f"{key}.npz"
    if cached.is_file():
        try:
            with np.load(cached) as saved:
                images, reasons = saved["images"], saved["reasons"].tolist()
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            log.warning("The decoded copy %s is damaged; decoding anew.", cached)
        else:
            _judge(files, reasons, max_bad_fraction)
            return images, np.array([not r for r in reasons])

    def one(path: Path) -> np.ndarray | str:
        try:
            return decode(path, image_size, resize, channels)
        except UnreadableImage as error:
            return str(error)

    out = np.empty((len(files), image_size, image_size, 3), dtype=np.uint8)
    reasons = [""] * len(files)
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress("decoding", len(files), "images") as advance:
        for i, image in enumerate(pool.map(one, files)):
            if isinstance(image, str):
                reasons[i] = image
            else:
                out[i] = image
            advance(1)
    _judge(files, reasons, max_bad_fraction)
    good = np.array([not r for r in reasons])
    images = out if good.all() else out[good]
    _save(cached, images, reasons)
    return images, good


def _judge(files: Sequence[Path], reasons: list[str], max_bad_fraction: float) -> None:
    named = [f"{path}: {reason}" for path, reason in zip(files, reasons, strict=True) if reason]
    if len(named) > max_bad_fraction * len(files):
        shown = "\n".join(named[:10]) + (f"\n... and {len(named) - 10} more" if len(named) > 10 else "")
        raise UserError(
            f"{len(named)} of {len(files)} images cannot be read, more than "
            f"dataset.max_bad_fraction={max_bad_fraction:g}: mend or remove them, or raise it\n{shown}"
        )
    for line in named:
        log.warning("Skipped %s", line)


def cache_folder() -> Path:
    """Return the folder of decoded copies: `$SSLRUN_CACHE`, else `sslrun` under the user's cache folder."""
    home = os.environ.get("SSLRUN_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "sslrun")
    return Path(home) / "decoded"


def _cache_key(files: Sequence[Path], image_size: int, resize: str, channels: str) -> str:
    digest = hashlib.sha256(f"{VERSION} {image_size} {resize} {channels}".encode())
    for path in files:
        try:
            stat = path.stat()
            digest.update(f"\0{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode("utf-8", "surrogateescape"))
        except OSError:
            digest.update(f"\0{path}\0missing".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def _save(path: Path, images: np.ndarray, reasons: list[str]) -> None:
    part = path.with_name(f"{path.stem}.{os.getpid()}.part.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(part, images=images, reasons=np.array(reasons))
        os.replace(part, path)
    except OSError as error:
        log.warning("The decoded images could not be kept in %s (%s); the next run decodes anew.", path.parent, error)
        with suppress(OSError):
            part.unlink()


@functools.cache
def is_picture(name: str) -> bool:
    """Tell by its suffix whether a file name is a picture's."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def find_pictures(folder: Path) -> list[Path]:
    """Return the picture files in and below a folder in an order that is the same on every machine.

    Links are followed, a loop of links is not; hidden files and folders are left out.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for top, dirs, names in os.walk(folder, followlinks=True):
        stat = os.stat(top)
        if (stat.st_dev, stat.st_ino) in seen:
            dirs.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        dirs[:] = sorted(d for d in dirs if not d.startswith("."))
        found += [Path(top, n) for n in names if is_picture(n) and not n.startswith(".")]
    return sorted(found, key=lambda p: p.relative_to(folder).as_posix())
