"""The first layers of a backbone, by the size of its images."""

from typing import Literal

from sslrun.config.types import Node

SMALL_UP_TO = 64  # px: up to here `stem=auto` keeps the resolution in the first layers
Stem = Literal["auto", "small", "imagenet", "imagenet_small"]


def is_small(stem: str, image_size: int) -> bool:
    return stem in ("small", "imagenet_small") or (stem == "auto" and image_size <= SMALL_UP_TO)


def for_imagenet(node: Node, image_size: int) -> Node:
    """Return a backbone's node with a stem that ImageNet weights fit."""
    small = "stem" in node and is_small(node["stem"], image_size)
    return {**node, "stem": "imagenet_small"} if small else node
