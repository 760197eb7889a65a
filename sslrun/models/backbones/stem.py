"""The stem (first layers) of a backbone, which depends on the image size."""

from typing import Literal

from sslrun.config.types import Node

SMALL_UP_TO = 64  # px: up to this size `stem=auto` is `small`, which keeps the resolution
Stem = Literal["auto", "small", "imagenet", "imagenet_small"]


def is_small(stem: str, image_size: int) -> bool:
    """Return whether the stem keeps the resolution, for images of this size."""
    return stem in ("small", "imagenet_small") or (stem == "auto" and image_size <= SMALL_UP_TO)


def stem_of(node: Node, image_size: int) -> str | None:
    """Return the stem with which a backbone is built for images of this size; None if its node has none."""
    stem: str | None = node.get("stem")
    if stem != "auto":
        return stem
    return "small" if is_small(stem, image_size) else "imagenet"


def for_imagenet(node: Node, image_size: int) -> Node:
    """Return a backbone's config node with a stem that matches ImageNet weights."""
    small = "stem" in node and is_small(node["stem"], image_size)
    return {**node, "stem": "imagenet_small"} if small else node
