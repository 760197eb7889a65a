"""Cached features of image files: only new and changed files go through the network again.

    $SSLRUN_CACHE/features/<key>.npz     paths, stamps and features

The key is a hash of the checkpoint, the stage and the precision. Deleted files are dropped at the next update.
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from sslrun.base.cached import Cached
from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.base.files import file_hash, replacing
from sslrun.base.paths import home
from sslrun.base.text import counted
from sslrun.data.decode import VERSION
from sslrun.inference.model import Model

MAX_NAMED = 20  # unreadable files that are logged by name; the others are only counted
DAMAGED = "The cached features in %s are damaged (%s); computing them again."
Features = dict[str, tuple[str, np.ndarray]]  # stamp and features by path


def indexed(
    model: Model, files: Sequence[str], stage: int | None, batch_size: int
) -> tuple[list[str], np.ndarray, dict[str, str]]:
    """Return the readable files, their features, `N x D`, and the reasons for unreadable files, which are also logged.

    Args:
        model: its encoder computes the features.
        files: paths of images.
        stage, batch_size: see `Model.embed`.

    Raises:
        UserError: no such stage, or none of the files can be read.
    """
    path = home() / "features" / f"{_key(model, stage)}.npz"
    cached = Cached(path, "embedding with the same network", _load, DAMAGED)
    with ExitStack() as stack:
        try:
            stack.enter_context(cached.alone())
        except OSError as error:
            log.warning("Cannot cache features in %s: %s", path.parent, error.strerror)
        embedded, bad = _embedded(model, files, stage, batch_size, cached)
    for name, reason in list(bad.items())[:MAX_NAMED]:
        log.warning("Cannot read %s: %s", name, reason)
    if len(bad) > MAX_NAMED:
        log.warning("... and %d more", len(bad) - MAX_NAMED)
    good = [f for f in files if f in embedded]
    if not good:
        name, reason = next(iter(bad.items()))
        raise UserError(f"no image can be read ({counted(len(files), 'file')}); the first: {name}: {reason}")
    return good, np.stack([embedded[f] for f in good]), bad


def _embedded(
    model: Model, files: Sequence[str], stage: int | None, batch_size: int, cached: Cached[Features]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    paths = {f: os.path.abspath(f) for f in files}
    known, stamps = cached.read() or {}, {f: _stamp(f) for f in paths}
    embedded = {f: known[p][1] for f, p in paths.items() if p in known and known[p][0] == stamps[f]}
    new = [f for f in paths if f not in embedded]
    if len(new) < len(paths):
        log.info("Cached features: %s of %s", f"{len(paths) - len(new):,}", counted(len(paths), "image"))
    if not new:
        return embedded, {}
    features, bad = model.embed_readable(new, stage, batch_size)
    embedded |= dict(zip([f for f in new if f not in bad], features, strict=True))
    current = set(paths.values())
    others = {p: v for p, v in known.items() if p not in current and os.path.exists(p)}
    try:
        _write(cached.path, others | {paths[f]: (stamps[f], x) for f, x in embedded.items()})
    except OSError as error:
        log.warning("Cannot cache features in %s: %s", cached.path.parent, error.strerror)
    return embedded, bad


def _key(model: Model, stage: int | None) -> str:
    digest = file_hash(model.network.path, "sha256")
    digest.update(f"{VERSION} {stage} {model.device.precision}".encode())
    return digest.hexdigest()[:32]


def _stamp(file: str) -> str:
    try:
        stat = os.stat(file)
    except OSError:
        return "missing"
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"  # ctime detects two files that were swapped


def _load(path: Path) -> Features:
    with np.load(path) as arrays:
        columns = arrays["files"].tolist(), arrays["stamps"].tolist(), arrays["features"]
        return {f: (s, x) for f, s, x in zip(*columns, strict=True)}


def _write(path: Path, known: Features) -> None:
    stamps, features = [s for s, _ in known.values()], [x for _, x in known.values()]
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, files=np.array(list(known), dtype=str), stamps=np.array(stamps, dtype=str), features=features)
