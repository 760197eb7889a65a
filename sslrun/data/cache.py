"""Decoding many pictures, once: the result lies under a cache folder and is mapped into memory from there.

    $SSLRUN_CACHE/decoded/<key>/
        images.npy     N x S x S x 3, uint8; unreadable pictures are black
        digests.npy    a hash of each
        bad.json       the unreadable ones: position -> reason

The key is made of the files (path, size, time), the settings, and the version of the decoder.
"""

import errno
import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
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
from sslrun.data.decode import NOT_ITS_FAULT, VERSION, Channels, Resize, decode_some
from sslrun.data.images import DIGEST, Images, digests
from sslrun.data.workers import in_order, workers

BLOCK = 32 << 20  # bytes of an array that are worked on at once
CHUNK = 4 << 20  # bytes of pictures that a core decodes at once
Blocks = Generator[tuple[np.ndarray, list[str]], None, None]


@dataclass
class Decoded:
    """Pictures as they were decoded.

    Attributes:
        array: `N x S x S x 3`, uint8.
        digests: a hash of each, `N x 16`.
        bad: why a picture could not be read, by its position.
    """

    array: np.ndarray
    digests: np.ndarray
    bad: dict[int, str]

    def good(self) -> np.ndarray:
        """Return the positions of the readable pictures."""
        return np.setdiff1d(np.arange(len(self.array)), list(self.bad))

    def images(self) -> Images:
        """Return the readable pictures."""
        index = torch.from_numpy(self.good()) if self.bad else None
        return Images([torch.from_numpy(self.array)], self.digests, index)


def decode_all(files: Sequence[str], image_size: int, resize: Resize, channels: Channels) -> Decoded:
    """Decode picture files on all cores, or map what an earlier call with the same files and settings has kept."""
    return _kept(
        _key(files, image_size, resize, channels),
        len(files),
        image_size,
        lambda: _decode(files, image_size, resize, channels),
    )


def resize_all(array: np.ndarray, image_size: int, channels: Channels) -> Decoded:
    """Bring an array `N x H x W x C` to `N x S x S x 3`, or map what an earlier call has kept.

    A mapped array that is its whole file is known by the file, another by its content.
    """
    if isinstance(array, np.memmap) and array.filename and array.nbytes == os.stat(array.filename).st_size:
        key = _key([str(array.filename)], image_size, channels, array.shape, array.strides)
    else:
        content = hashlib.blake2b(np.ascontiguousarray(array).data).hexdigest()
        key = _key([], image_size, channels, array.shape, content)
    return _kept(key, len(array), image_size, lambda: _resize(array, image_size, channels))


def resized(array: np.ndarray, image_size: int, channels: Channels) -> np.ndarray:
    """Bring `N x H x W x C` (C of 1 or 3) to `N x S x S x 3`, antialiased; a square needs no crop or pad."""
    return np.concatenate([block for block, _ in _resize(array, image_size, channels)])


def cache_folder() -> Path:
    """Return the folder of decoded pictures."""
    return home() / "decoded"


def _decode(files: Sequence[str], image_size: int, resize: Resize, channels: Channels) -> Blocks:
    at_once = max(1, min(64, CHUNK // (image_size**2 * 3)))
    chunks = (files[i : i + at_once] for i in range(0, len(files), at_once))
    work = partial(decode_some, image_size=image_size, resize=resize, channels=channels)
    with workers(len(files)) as pool, progress("decoding", len(files), "images") as advance:
        for block, reasons in in_order(pool, work, chunks):
            advance(len(block))
            yield block, reasons


def _resize(array: np.ndarray, image_size: int, channels: Channels) -> Blocks:
    at_once = max(1, BLOCK // max(1, array[0].size, image_size**2 * 3)) if len(array) else 1
    for i in range(0, len(array), at_once):
        chunk = torch.from_numpy(np.array(array[i : i + at_once])).permute(0, 3, 1, 2)
        if channels == "gray" and chunk.shape[1] == 3:
            weights = torch.tensor([0.299, 0.587, 0.114])
            chunk = (chunk.float() * weights[:, None, None]).sum(1, keepdim=True).round().to(torch.uint8)
        if chunk.shape[-2:] != (image_size, image_size):
            chunk = F.interpolate(chunk.contiguous(), (image_size, image_size), mode="bilinear", antialias=True)
        block = chunk.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous().numpy()
        yield block, [""] * len(block)


def _key(files: Sequence[str], *settings: object) -> str:
    digest = hashlib.sha256(f"{VERSION} {settings}".encode())
    for path in files:
        try:
            stat = os.stat(path)
            text = f"\0{os.path.abspath(path)}\0{stat.st_size}\0{stat.st_mtime_ns}"
        except OSError:
            text = f"\0{os.path.abspath(path)}\0missing"
        digest.update(text.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def _kept(key: str, n: int, image_size: int, produce: Callable[[], Blocks]) -> Decoded:
    """Return what lies under the key, or produce it; two processes at once produce it once."""
    folder = cache_folder() / key
    shape = (n, image_size, image_size, 3)
    damaged = "The decoded copy %s is damaged (%s); decoding anew."
    cached = Cached(folder, "decoding the same pictures", lambda folder: _load(folder, shape), damaged)
    if entry := cached.read():
        return entry
    try:
        with cached.alone():
            if entry := cached.read():  # another process has just made it
                return entry
            _write(folder, shape, produce())
            entry = _load(folder, shape, just_made=True)
            assert entry is not None
            return entry
    except OSError as error:
        log.warning("The decoded pictures cannot be kept in %s (%s); the next run decodes anew.", folder.parent, error)
        return _produced(shape, produce(), folder.parent)


def _load(folder: Path, shape: tuple[int, ...], just_made: bool = False) -> Decoded | None:
    """Return what a folder of the cache holds, mapped; None where a file may be readable now that was not."""
    array = np.load(folder / "images.npy", mmap_mode="c")
    hashes = np.load(folder / "digests.npy")
    bad = {int(i): str(reason) for i, reason in json.loads((folder / "bad.json").read_text()).items()}
    if array.shape != shape or hashes.shape != (shape[0], DIGEST):
        raise ValueError(f"holds {array.shape}, not {shape}")
    if not just_made and any(reason.startswith(NOT_ITS_FAULT) for reason in bad.values()):
        log.info("Some files could not be opened the last time; decoding anew.")
        return None
    _advise(array)
    return Decoded(array, hashes, bad)


def _advise(array: np.ndarray) -> None:
    """Tell the system that rows are read in any order, so that it reads no more than they are: 8 times as fast where
    the array is larger than memory; and to read it all beforehand where it is small.
    """
    if isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_RANDOM"):
        array.base.madvise(mmap.MADV_RANDOM)
        if array.nbytes < physical_memory() // 4:
            array.base.madvise(mmap.MADV_WILLNEED)


def _write(folder: Path, shape: tuple[int, ...], blocks: Blocks) -> None:
    size = int(np.prod(shape))
    if shutil.disk_usage(folder.parent).free < size + (64 << 20):
        raise OSError(errno.ENOSPC, f"{size / 1e9:.1f} GB are needed")
    temporary = folder.with_name(f"{folder.name}.part")  # one that a killed process left behind is written over
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        bad: dict[int, str] = {}
        hashes = []
        with (temporary / "images.npy").open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_2_0(file, header)
            done = 0
            for block, reasons in blocks:
                file.write(block.data)
                hashes.append(digests(block))
                bad |= {done + i: reason for i, reason in enumerate(reasons) if reason}
                done += len(block)
        np.save(temporary / "digests.npy", np.concatenate(hashes) if hashes else np.empty((0, DIGEST), np.uint8))
        (temporary / "bad.json").write_text(json.dumps(bad))
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        os.replace(temporary, folder)
    finally:
        blocks.close()  # ends its workers
        shutil.rmtree(temporary, ignore_errors=True)


def _produced(shape: tuple[int, ...], blocks: Blocks, folder: Path) -> Decoded:
    """Decode into memory, where there is no room for a cache."""
    size = int(np.prod(shape))
    if size > (physical_memory() or 4 * size) // 2:
        raise UserError(
            f"the decoded pictures take {size / 1e9:.1f} GB, too much for memory: make room in {folder}, or let "
            "SSLRUN_CACHE name a folder on another disk"
        )
    array = np.zeros(shape, dtype=np.uint8)
    bad: dict[int, str] = {}
    done = 0
    for block, reasons in blocks:
        array[done : done + len(block)] = block
        bad |= {done + i: reason for i, reason in enumerate(reasons) if reason}
        done += len(block)
    return Decoded(array, digests(array), bad)
