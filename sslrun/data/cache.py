"""Decoded images, cached on disk and mapped into memory.

    $SSLRUN_CACHE/decoded/<key>/
        images.npy     N x S x S x 3, uint8; unreadable images are black
        digests.npy    a hash of each image
        bad.json       the unreadable images: position -> reason
        outside.json   images with values outside the range: position -> fraction of its values

The key is a hash of the files (path, size, modification time), the settings and the version of the decoder.
"""

import errno
import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from sslrun.base.cached import Cached
from sslrun.base.console import log, progress
from sslrun.base.errors import UserError
from sslrun.base.machine import physical_memory
from sslrun.base.paths import home
from sslrun.data.decode import TRANSIENT, VERSION, Channels, Resize, decode_some
from sslrun.data.depth import Range
from sslrun.data.images import DIGEST, Images, Original, digests
from sslrun.data.workers import in_order, workers

BLOCK = 32 << 20  # bytes of an array that are processed at once
CHUNK = 4 << 20  # bytes of decoded images per task
Blocks = Generator[tuple[np.ndarray, list[str], list[float]], None, None]  # as `decode_some` returns them


@dataclass
class Decoded:
    """Decoded images, including those that could not be read.

    Attributes:
        array: `N x S x S x 3`, uint8.
        digests: a hash of each image, `N x 16`.
        bad: the reason why an image could not be read, by its position.
        outside: the fraction of an image's values that lies outside the range, by its position; not those of 0.
        original: reads the images at another size.
    """

    array: np.ndarray
    digests: np.ndarray
    bad: dict[int, str]
    outside: dict[int, float]
    original: Original | None = None

    def good(self) -> np.ndarray:
        """Return the positions of the readable images."""
        return np.setdiff1d(np.arange(len(self.array)), list(self.bad))

    def images(self) -> Images:
        """Return the readable images."""
        index = torch.from_numpy(self.good()) if self.bad else None
        return Images([torch.from_numpy(self.array)], self.digests, index, [self.original] if self.original else [])


def decode_all(
    files: Sequence[str], image_size: int, resize: Resize, channels: Channels, gray_range: Range | None = None
) -> Decoded:
    """Decode image files on all cores, or read the cached result for the same files and settings."""
    limits = None if gray_range is None else (float(gray_range[0]), float(gray_range[1]))
    key = partial(_key_of_files, files, resize, channels, limits)
    decoded = _cached(
        key(image_size),
        len(files),
        image_size,
        lambda: _with_progress(_decode(files, image_size, resize, channels, limits), len(files)),
    )
    settings = {"resize": resize, "channels": channels, "range": gray_range}
    blocks = partial(_decoded_again, files, resize, channels, limits)
    return replace(decoded, original=Original(blocks, key, settings))


def resize_all(array: np.ndarray, image_size: int, channels: Channels) -> Decoded:
    """Resize an array `N x H x W x C` (C of 1 or 3) to `N x S x S x 3`, or read the cached result.

    A memory-mapped array that spans its whole file is identified by the file, any other by a hash of its content.
    """
    if isinstance(array, np.memmap) and array.filename and array.nbytes == os.stat(array.filename).st_size:
        files, content = [str(array.filename)], str(array.strides)
    else:
        files, content = [], hashlib.blake2b(np.ascontiguousarray(array).data).hexdigest()
    key = partial(_key_of_array, files, channels, array.shape, content)
    decoded = _cached(key(image_size), len(array), image_size, lambda: _resize(array, image_size, channels))
    blocks = partial(_resized_again, array, channels)
    return replace(decoded, original=Original(blocks, key, {"channels": channels}))


def _key_of_files(
    files: Sequence[str], resize: Resize, channels: Channels, gray_range: Range | None, image_size: int
) -> str:
    return key_of(files, image_size, resize, channels, gray_range)


def _key_of_array(
    files: Sequence[str], channels: Channels, shape: tuple[int, ...], content: str, image_size: int
) -> str:
    return key_of(files, image_size, channels, shape, content)


def _decoded_again(
    files: Sequence[str], resize: Resize, channels: Channels, gray_range: Range | None, size: int, rows: np.ndarray
) -> Iterator[np.ndarray]:
    chosen, done = [files[i] for i in rows], 0
    for block, reasons, _ in _decode(chosen, size, resize, channels, gray_range):
        for i, reason in enumerate(reasons):
            if reason:
                raise UserError(f"{chosen[done + i]}: {reason}; it could be read before. Mend or remove it")
        done += len(block)
        yield block


def _resized_again(array: np.ndarray, channels: Channels, size: int, rows: np.ndarray) -> Iterator[np.ndarray]:
    for i in range(0, len(rows), 256):
        for block, _, _ in _resize(array[rows[i : i + 256]], size, channels):
            yield block


def resized(array: np.ndarray, image_size: int, channels: Channels) -> np.ndarray:
    """Resize `N x H x W x C` (C of 1 or 3) to `N x S x S x 3` with antialiasing, without cropping or padding."""
    return np.concatenate([block for block, _, _ in _resize(array, image_size, channels)])


def cache_folder() -> Path:
    """Return the cache folder of decoded images."""
    return home() / "decoded"


def _with_progress(blocks: Blocks, total: int) -> Blocks:
    with closing(blocks), progress("decoding", total, "images") as advance:
        for block in blocks:
            advance(len(block[0]))
            yield block


def _decode(
    files: Sequence[str], image_size: int, resize: Resize, channels: Channels, gray_range: Range | None
) -> Blocks:
    chunk_size = max(1, min(64, CHUNK // (image_size**2 * 3)))
    chunks = (files[i : i + chunk_size] for i in range(0, len(files), chunk_size))
    work = partial(decode_some, image_size=image_size, resize=resize, channels=channels, gray_range=gray_range)
    with workers(len(files)) as pool:
        yield from in_order(pool, work, chunks)


def _resize(array: np.ndarray, image_size: int, channels: Channels) -> Blocks:
    chunk_size = max(1, BLOCK // max(1, array[0].size, image_size**2 * 3)) if len(array) else 1
    for i in range(0, len(array), chunk_size):
        chunk = torch.from_numpy(np.array(array[i : i + chunk_size])).permute(0, 3, 1, 2)
        if channels == "gray" and chunk.shape[1] == 3:
            weights = torch.tensor([0.299, 0.587, 0.114])
            chunk = (chunk.float() * weights[:, None, None]).sum(1, keepdim=True).round().to(torch.uint8)
        if chunk.shape[-2:] != (image_size, image_size):
            chunk = F.interpolate(chunk.contiguous(), (image_size, image_size), mode="bilinear", antialias=True)
        block = chunk.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous().numpy()
        yield block, [""] * len(block), [0.0] * len(block)


def key_of(files: Sequence[str], *settings: object) -> str:
    """Return a hash of files (paths, sizes, modification times), of settings and of the version of the decoder."""
    digest = hashlib.sha256(f"{VERSION} {settings}".encode())
    for path in files:
        try:
            stat = os.stat(path)
            text = f"\0{os.path.abspath(path)}\0{stat.st_size}\0{stat.st_mtime_ns}"
        except OSError:
            text = f"\0{os.path.abspath(path)}\0missing"
        digest.update(text.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def _cached(key: str, n: int, image_size: int, produce: Callable[[], Blocks]) -> Decoded:
    """Return the cache entry of a key, or create it; concurrent processes create it only once."""
    folder = cache_folder() / key
    shape = (n, image_size, image_size, 3)
    damaged = "The cache entry %s is damaged (%s); decoding again."
    cached = Cached(folder, "decoding the same images", lambda folder: _load(folder, shape), damaged)
    if entry := cached.read():
        return entry
    try:
        with cached.alone():
            if entry := cached.read():  # another process has just created it
                return entry
            _write(folder, shape, produce())
            entry = _load(folder, shape, just_written=True)
            assert entry is not None
            return entry
    except OSError as error:
        log.warning("Cannot cache decoded images in %s (%s); the next run decodes them again.", folder.parent, error)
        return _decode_in_memory(shape, produce(), folder.parent)


def _load(folder: Path, shape: tuple[int, ...], just_written: bool = False) -> Decoded | None:
    """Read a cache entry, memory-mapped; None if a file could not be opened then, since it may be readable now."""
    array = np.load(folder / "images.npy", mmap_mode="c")
    hashes = np.load(folder / "digests.npy")
    bad = {int(i): str(reason) for i, reason in json.loads((folder / "bad.json").read_text()).items()}
    outside = {int(i): float(f) for i, f in json.loads((folder / "outside.json").read_text()).items()}
    if array.shape != shape or hashes.shape != (shape[0], DIGEST):
        raise ValueError(f"expected shape {shape}, found {array.shape}")
    if not just_written and any(reason.startswith(TRANSIENT) for reason in bad.values()):
        log.info("Some files could not be opened last time; decoding again.")
        return None
    _advise(array)
    return Decoded(array, hashes, bad, outside)


def _advise(array: np.ndarray) -> None:
    """Disable read-ahead, since rows are read in random order; prefetch a small array as a whole.

    Where the array is larger than memory, reading is 8 times as fast without read-ahead.
    """
    if isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_RANDOM"):
        array.base.madvise(mmap.MADV_RANDOM)
        if array.nbytes < physical_memory() // 4:
            array.base.madvise(mmap.MADV_WILLNEED)


def _write(folder: Path, shape: tuple[int, ...], blocks: Blocks) -> None:
    size = int(np.prod(shape))
    if shutil.disk_usage(folder.parent).free < size + (64 << 20):
        raise OSError(errno.ENOSPC, f"{size / 1e9:.1f} GB are needed")
    temporary = folder.with_name(f"{folder.name}.part")  # may exist already if an earlier process was killed
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        bad: dict[int, str] = {}
        clipped: dict[int, float] = {}
        hashes = []
        with (temporary / "images.npy").open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_2_0(file, header)
            done = 0
            for block, reasons, outside in blocks:
                file.write(block.data)
                hashes.append(digests(block))
                bad |= {done + i: reason for i, reason in enumerate(reasons) if reason}
                clipped |= {done + i: fraction for i, fraction in enumerate(outside) if fraction}
                done += len(block)
        np.save(temporary / "digests.npy", np.concatenate(hashes) if hashes else np.empty((0, DIGEST), np.uint8))
        (temporary / "bad.json").write_text(json.dumps(bad))
        (temporary / "outside.json").write_text(json.dumps(clipped))
        shutil.rmtree(folder, ignore_errors=True)  # a damaged entry
        os.replace(temporary, folder)
    finally:
        blocks.close()  # stops the workers
        shutil.rmtree(temporary, ignore_errors=True)


def _decode_in_memory(shape: tuple[int, ...], blocks: Blocks, folder: Path) -> Decoded:
    """Decode into memory, where the cache cannot be written."""
    size = int(np.prod(shape))
    if size > (physical_memory() or 4 * size) // 2:
        raise UserError(
            f"the decoded images need {size / 1e9:.1f} GB, too much for memory: free space in {folder}, or set "
            "SSLRUN_CACHE to a folder on another disk"
        )
    array = np.zeros(shape, dtype=np.uint8)
    bad: dict[int, str] = {}
    clipped: dict[int, float] = {}
    done = 0
    for block, reasons, outside in blocks:
        array[done : done + len(block)] = block
        bad |= {done + i: reason for i, reason in enumerate(reasons) if reason}
        clipped |= {done + i: fraction for i, fraction in enumerate(outside) if fraction}
        done += len(block)
    return Decoded(array, digests(array), bad, clipped)
