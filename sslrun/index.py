"""Features of picture files, kept in the cache: only new and changed files go through the network again.

    $SSLRUN_CACHE/features/<key>.npz     paths, stamps and features

The key is made of the checkpoint, the stage, and the folder that holds the files.
"""

import hashlib
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sslrun.api import Model
from sslrun.console import log
from sslrun.data.decode import VERSION
from sslrun.data.lock import alone, home

Kept = dict[str, tuple[str, np.ndarray]]


def indexed(model: Model, files: Sequence[str], stage: int | None) -> tuple[list[str], np.ndarray]:
    """Return the files that can be read, and their features, `N x D`; the others are named in a warning.

    Args:
        model: whose encoder gives the features.
        files: any number, in any folders.
        stage: as of `Model.embed`.

    Raises:
        UserError: no such stage.
    """
    path = home() / "features" / f"{_key(model, files, stage)}.npz"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with alone(path.with_suffix(".lock"), "embedding the same pictures"):
            found, bad = _embedded(model, files, stage, path)
    except OSError as error:
        log.warning("The features cannot be kept in %s (%s).", path.parent, error)
        features, bad = model.embed_readable(files, stage)
        found = dict(zip([f for f in files if f not in bad], features, strict=True))
    if bad:
        name, reason = next(iter(bad.items()))
        log.warning("%d of %d cannot be read and are left out; the first: %s: %s", len(bad), len(files), name, reason)
    good = [f for f in files if f in found]
    return good, np.stack([found[f] for f in good]) if good else np.zeros((0, 1), np.float32)


def _embedded(
    model: Model, files: Sequence[str], stage: int | None, path: Path
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    where = {f: os.path.abspath(f) for f in files}
    kept, stamps = _read(path), {f: _stamp(f) for f in where}
    found = {f: kept[p][1] for f, p in where.items() if p in kept and kept[p][0] == stamps[f]}
    new = [f for f in where if f not in found]
    bad: dict[str, str] = {}
    if new:
        features, bad = model.embed_readable(new, stage)
        found |= dict(zip([f for f in new if f not in bad], features, strict=True))
        others = {p: v for p, v in kept.items() if p not in where.values() and os.path.exists(p)}
        _write(path, others | {where[f]: (stamps[f], x) for f, x in found.items()})
    if len(new) < len(where):
        log.info("The features of %d of %d pictures were kept from before.", len(where) - len(new), len(where))
    return found, bad


def _key(model: Model, files: Sequence[str], stage: int | None) -> str:
    digest = hashlib.sha256(model.network.path.read_bytes())
    top = os.path.commonpath([os.path.dirname(os.path.abspath(f)) for f in files])
    digest.update(f"{VERSION} {stage} {model.device.precision} {top}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def _stamp(file: str) -> str:
    try:
        about = os.stat(file)
    except OSError:
        return "missing"
    return f"{about.st_size} {about.st_mtime_ns}"


def _read(path: Path) -> Kept:
    try:
        with np.load(path) as kept:
            columns = kept["files"].tolist(), kept["stamps"].tolist(), kept["features"]
            return {f: (s, x) for f, s, x in zip(*columns, strict=True)}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("The kept features in %s are damaged (%s); embedding anew.", path, error)
        return {}


def _write(path: Path, kept: Kept) -> None:
    part = path.with_suffix(".part.npz")
    stamps, features = [s for s, _ in kept.values()], [x for _, x in kept.values()]
    try:
        np.savez(part, files=np.array(list(kept), dtype=str), stamps=np.array(stamps, dtype=str), features=features)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
