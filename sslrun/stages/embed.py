"""`sslrun embed`: extract features of images."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from sslrun.base.console import log, printable
from sslrun.base.errors import UserError
from sslrun.base.files import creating, new_file
from sslrun.base.output import write_csv_lines
from sslrun.base.text import counted
from sslrun.config.types import Count, Node, PositiveInt
from sslrun.data.cache import decode_all
from sslrun.data.depth import Range
from sslrun.inference.index import indexed
from sslrun.inference.inputs import named_images
from sslrun.inference.model import open_model
from sslrun.report import embedding_map
from sslrun.run.run import Run

PROJECTED_SIDE = 32  # px; size of images in TensorBoard's projector


@dataclass(frozen=True, kw_only=True)
class Embed:
    """Settings of `sslrun embed`, documented in conf/embed.yaml."""

    images: list[str]
    run: str
    stage: PositiveInt | None
    batch_size: PositiveInt
    format: Literal["npz", "csv", "parquet"]
    out: str | None
    map: Count
    projector: Count
    seed: Count
    device: Node


def embed(run: Run, settings: Embed) -> dict[str, Any]:
    """Write the features of images to a file, and draw a map of them.

    Returns:
        Entries of the run's summary.

    Raises:
        UserError: no images, a file that exists already, a missing package, or some images could not be read (raised
            after the features of the others are written).
    """
    if settings.format == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UserError("format=parquet needs pyarrow; install it with pip install pyarrow")
    named = named_images(settings.images)
    path = new_file("out", Path(settings.out) if settings.out else run.directory / f"embeddings.{settings.format}")
    run.resolve(out=str(path))
    model = open_model(settings.run, settings.device)
    run.resolve(run=str(model.network.path.parent))
    files, features, bad = indexed(model, named, settings.stage, settings.batch_size)
    with creating(path, "out", path.suffix[:20]) as temporary:
        {"npz": _npz, "csv": _csv, "parquet": _parquet}[settings.format](temporary, files, features)
    groups = embedding_map.folders_of(files)
    order = np.random.default_rng(settings.seed).permutation(len(files))
    rows = np.sort(order[: settings.map])
    if settings.map and len(rows) < 3:
        log.info("No map: it needs at least 3 images.")
    elif settings.map:
        page = embedding_map.publish(
            run, [files[i] for i in rows], features[rows], [groups[i] for i in rows], settings.seed, model.gray_range
        )
        log.info("Map: %s", page)
    if settings.projector:
        rows = np.sort(order[: settings.projector])
        _project(run, [files[i] for i in rows], features[rows], [groups[i] for i in rows], model.gray_range)
        log.info("TensorBoard projector: tensorboard --logdir %s", run.directory)
    print(path, flush=True)
    log.info("Extracted %d features of %s.", features.shape[1], counted(len(files), "image"))
    if bad:
        raise UserError(f"{len(bad)} of {counted(len(named), 'image')} could not be read; {path} contains the others")
    return {
        "images": len(files),
        "features": features.shape[1],
        "file": str(path),
        "of_run": str(model.network.path.parent),
    }


def _npz(path: Path, files: Sequence[str], features: np.ndarray) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, images=np.array(files, dtype=str), features=features)


def _csv(path: Path, files: Sequence[str], features: np.ndarray) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        header = ["image", *(f"feature_{i}" for i in range(1, features.shape[1] + 1))]
        write_csv_lines(file, header, files, ([f"{v:.6g}" for v in x] for x in features))


def _parquet(path: Path, files: Sequence[str], features: np.ndarray) -> None:
    import pyarrow
    import pyarrow.parquet

    column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(features.reshape(-1)), features.shape[1])
    names = [f.encode("utf-8", "backslashreplace").decode() for f in files]
    pyarrow.parquet.write_table(pyarrow.table({"image": names, "features": column}), path)


def _project(
    run: Run, files: Sequence[str], features: np.ndarray, groups: Sequence[str], gray_range: Range | None
) -> None:
    """Write the data of TensorBoard's projector: features, file names, folders, and thumbnails."""
    pixels = decode_all(files, PROJECTED_SIDE, "crop", "rgb", gray_range).array
    run.log.tensorboard.writer.add_embedding(
        torch.from_numpy(features),
        metadata=[[printable(g), printable(f)] for g, f in zip(groups, files, strict=True)],
        metadata_header=["folder", "image"],
        label_img=torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 255,
    )
