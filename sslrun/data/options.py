"""The keys that every data set has, and its preprocessing."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from sslrun.base.errors import UserError
from sslrun.config.build import parameters
from sslrun.config.types import Also, Count, Fraction, FromCheckpoint, Node, PositiveInt, Share, Supplied
from sslrun.data.decode import Channels, Resize

PREPROCESSING = ("image_size", "resize", "channels", "mean", "std")


def preprocessing_of(dataset: Node, has: Node, overrides: Mapping[str, str], source: Path | None) -> Node:
    """Return a data set's node with the preprocessing of a checkpoint, or of a run to be compared with (no source).

    Raises:
        UserError: a checkpoint has another image size, resizing, channels or normalisation than was asked for.
    """
    for key in PREPROCESSING:
        if source is not None and f"dataset.{key}" in overrides and dataset[key] != has[key]:
            raise UserError(differs(f"dataset.{key}", dataset[key], has[key], source))
    return {**dataset, **{k: has[k] for k in PREPROCESSING if f"dataset.{k}" not in overrides}}


def differs(key: str, value: Any, has: Any, source: Path | str) -> str:
    return f"{key}={value} was asked for, but {source} was made with {has}: leave {key} away, or pretrain anew"


ImageSize = Annotated[int, Field(ge=8, le=1024)]
Three = Annotated[list[float], Field(min_length=3, max_length=3)]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The keys that every data set has, beside those of its source."""

    image_size: ImageSize
    resize: Resize = "crop"
    channels: Channels = "rgb"
    val_fraction: Share = 0.1
    split_seed: Count = 0
    classes: list[str] | dict[str, list[str]] | None = None
    max_images: PositiveInt | None = None
    max_bad_fraction: Fraction = 0.01
    horizontal_flip: bool = True
    mean: Three | None = None
    std: Three | None = None


DatasetNode = Annotated[Node, Also(Options), Supplied("split")]
# One that a checkpoint may say.
AnyDatasetNode = Annotated[Node, Also(Options, without=("root",)), Supplied("split"), FromCheckpoint()]


def shared(node: Node) -> Options:
    """Return the keys of a data set's node that all data sets have."""
    names = parameters(Options)
    return Options(**{k: v for k, v in node.items() if k in names})


def describe(node: Node) -> str:
    """Return the data set's name, and its place if it is a folder of the user's."""
    name = str(node["_target_"]).rsplit(".", 1)[-1]
    return f"{name} {node['root']}" if name == "folder" else name
