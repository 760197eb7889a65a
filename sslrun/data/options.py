"""The config keys common to all data sets, and preprocessing."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from sslrun.base.errors import UserError
from sslrun.config.build import parameters
from sslrun.config.nodes import same_root
from sslrun.config.types import Also, Count, Fraction, FromCheckpoint, Node, PositiveInt, Share, Supplied
from sslrun.data.decode import Channels, Resize

PREPROCESSING = ("image_size", "resize", "channels", "range", "mean", "std")
AUTO: Final = "auto"  # of `range`: measured


def preprocessing_of(dataset: Node, has: Node, overrides: Mapping[str, str], source: Path | None) -> Node:
    """Return a data set's config node with the preprocessing of an earlier run.

    Args:
        dataset: the config node.
        has: the earlier run's config node.
        overrides: of the command line, key -> value.
        source: the checkpoint whose preprocessing is required; None if overrides may change it.

    Raises:
        UserError: the overrides differ from the checkpoint's preprocessing.
    """
    has = {"range": None, **has}  # which older runs lack
    given = {k for k in PREPROCESSING if f"dataset.{k}" in overrides}
    if source is not None and has["range"] is not None and dataset.get("range", AUTO) == AUTO:
        given -= {"range"}
    for key in PREPROCESSING:
        differs = key in given and dataset[key] != has[key]
        if source is not None and differs and not (key == "range" and has[key] is None):  # of 8-bit images: any range
            raise UserError(mismatch(f"dataset.{key}", dataset[key], has[key], source))
    return {**dataset, **{k: has[k] for k in PREPROCESSING if k not in given}}


def mismatch(key: str, value: Any, has: Any, source: Path | str) -> str:
    """Return the message that an override differs from a checkpoint."""
    return f"{key}={value} does not match {source}, which has {key}={has}: remove {key}, or pretrain again"


def _range(value: Any) -> Any:
    numbers = isinstance(value, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    if value in (AUTO, None) or (numbers and len(value) == 2 and -math.inf < value[0] < value[1] < math.inf):
        return value
    raise PydanticCustomError("range", "auto or two increasing numbers, [low,high]")


ImageSize = Annotated[int, Field(ge=8, le=1024)]
Three = Annotated[list[float], Field(min_length=3, max_length=3)]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The keys of every data set, in addition to those of its source."""

    image_size: ImageSize
    resize: Resize = "crop"
    channels: Channels = "rgb"
    range: Annotated[Literal["auto"] | list[float] | None, BeforeValidator(_range)] = AUTO
    val_fraction: Share = 0.1
    split_seed: Count = 0
    classes: list[str] | dict[str, list[str]] | None = None
    max_images: PositiveInt | None = None
    max_bad_fraction: Fraction = 0.01
    horizontal_flip: bool = True
    mean: Three | None = None
    std: Three | None = None


DatasetNode = Annotated[Node, Also(Options), Supplied("split")]
# With from_checkpoint, a checkpoint fills it in.
OF_FOLDERS = ("root", "labels", "columns", "label_pattern", "test_fraction", "groups")
AnyDatasetNode = Annotated[Node, Also(Options, without=OF_FOLDERS), Supplied("split"), FromCheckpoint()]


def shared(node: Node) -> Options:
    """Return the common keys of a data set's config node."""
    names = parameters(Options)
    return Options(**{k: v for k, v in node.items() if k in names})


def describe(node: Node) -> str:
    """Return the data set's name, and the path if it is a folder."""
    name = str(node["_target_"]).rsplit(".", 1)[-1]
    return f"{name} {node['root']}" if name == "folder" else name


def has_groups(node: Node) -> bool:
    """Return whether a data set's images belong to groups: by an expression, or by a column of the label file."""
    return node.get("groups") is not None or (node.get("columns") or {}).get("group") is not None


def labels_of(node: Node, trained_on: Node, overrides: Mapping[str, str]) -> Node:
    """Return a data set's config node without the label file of an earlier run, if that had other images.

    Args:
        node: the config node, completed from the earlier run.
        trained_on: the earlier run's config node.
        overrides: of the command line, key -> value.
    """
    if "labels" not in node or same_root(node, trained_on):
        return node
    return {**node, **{k: None for k in ("labels", "columns") if f"dataset.{k}" not in overrides}}
