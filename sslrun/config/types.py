"""Annotated types for the signatures of what a config builds, and markers for its nodes."""

from typing import Annotated, Any

from pydantic import Field

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]  # a fraction that leaves a remainder
MOST = 2**32 - 1  # of an integer: the largest seed that scikit-learn takes
PositiveInt = Annotated[int, Field(ge=1, le=MOST)]
TwoOrMore = Annotated[int, Field(ge=2, le=MOST)]
Count = Annotated[int, Field(ge=0, le=MOST)]
Pair = Annotated[list[NotNegative], Field(min_length=2, max_length=2)]

Node = dict[str, Any]  # a mapping in the config, most with a `_target_`


class Also:
    """Marks a node with the keyword-only parameters of a second function or class in addition to its target's.

    Args:
        of: the second function or class.
        without: keys of targets that are not checked while the target is unknown.
    """

    def __init__(self, of: Any, without: tuple[str, ...] = ()) -> None:
        self.of, self.without = of, without


class Supplied:
    """Marks a node whose target is called with these positional arguments from sslrun before the keys of its YAML."""

    def __init__(self, *names: str) -> None:
        self.names = names


class FromCheckpoint:
    """Marks a node that may be read from a checkpoint: its `_target_` may be null."""
