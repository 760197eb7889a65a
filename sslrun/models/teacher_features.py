"""Features of a teacher for a distillation, computed once and kept in the cache.

    $SSLRUN_CACHE/features/<key>/
        features.npy   N x D, half precision
        sha256         of that file
        seconds        that computing them took

The key is a hash of the original files and how they are read, of the teacher's weights, and of its image size and
precision.
"""

import copy
import hashlib
import shutil
import time
from pathlib import Path

import numpy as np
import torch

from sslrun.base.cached import Cached
from sslrun.base.console import log, progress
from sslrun.base.files import file_hash
from sslrun.base.paths import home
from sslrun.data.images import Images
from sslrun.device import Device, native_precision
from sslrun.models.features import features
from sslrun.models.teacher import Teacher

FEW = 50  # images whose features are not worth a place in the cache
BATCH = 64  # images of 224 px


def teacher_features(teacher: Teacher, images: Images, device: Device) -> tuple[np.ndarray, float]:
    """Return the teacher's features of all images, `N x D`, half precision, and the seconds that the cache saved.

    The teacher reads the original files at its own size. The features are memory-mapped from the cache.
    """
    device = copy.copy(device)
    device.use(native_precision(device.torch.type), "channels_last")  # whatever the student is trained with
    digest = hashlib.sha256(f"{teacher.image_size} {device.precision} {teacher.digest()}".encode())
    digest.update(images.key_at(teacher.image_size).encode())
    folder = home() / "features" / digest.hexdigest()[:32]
    shape = (len(images), teacher.encoder.feature_dim)
    if len(images.index.unique()) < FEW:
        return _computed(teacher, images, device), 0.0
    cached = Cached(
        folder, "computing the same features", lambda path: _load(path, shape),
        "The cache entry %s is damaged (%s); computing the features again.",
    )  # fmt: skip
    if (entry := cached.read()) is not None:
        return entry
    array: np.ndarray | None = None
    try:
        with cached.alone():
            if (entry := cached.read()) is not None:  # another process has just created it
                return entry
            began = time.monotonic()
            array = _computed(teacher, images, device)
            _write(folder, array, time.monotonic() - began)
    except OSError as error:
        log.warning("Cannot cache the teacher's features in %s (%s).", folder.parent, error)
    return _computed(teacher, images, device) if array is None else array, 0.0


def _computed(teacher: Teacher, images: Images, device: Device) -> np.ndarray:
    """Compute the features, each image once, however often it occurs."""
    unique, position = np.unique(images.index.numpy(), return_inverse=True)
    out = np.empty((len(unique), teacher.encoder.feature_dim), dtype=np.float16)
    device.put(teacher.encoder)
    done, batch_size = 0, max(1, round(BATCH * (224 / teacher.image_size) ** 2))
    with progress("teacher", len(unique), "images") as advance:
        for block in images.at(teacher.image_size):
            out[done : done + len(block)] = features(teacher.encoder, block, device, batch_size).half().numpy()
            done += len(block)
            advance(len(block))
    teacher.encoder.cpu()  # it is not needed any more
    return out[position]


def _load(folder: Path, shape: tuple[int, int]) -> tuple[np.ndarray, float]:
    array: np.ndarray = np.load(folder / "features.npy", mmap_mode="r")
    if array.shape != shape or array.dtype != np.float16:
        raise ValueError(f"expected shape {shape}, found {array.shape}")
    if file_hash(folder / "features.npy", "sha256").hexdigest() != (folder / "sha256").read_text():
        raise ValueError("wrong checksum")
    return array, float((folder / "seconds").read_text())


def _write(folder: Path, array: np.ndarray, seconds: float) -> None:
    temporary = folder.with_name(f"{folder.name}.part")  # may exist already if an earlier process was killed
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        np.save(temporary / "features.npy", array)
        (temporary / "sha256").write_text(file_hash(temporary / "features.npy", "sha256").hexdigest())
        (temporary / "seconds").write_text(f"{seconds:.2f}")
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def half_rows(array: np.ndarray, rows: torch.Tensor) -> torch.Tensor:
    """Return some rows, in float32."""
    return torch.from_numpy(array[rows.cpu().numpy()].astype(np.float32))
