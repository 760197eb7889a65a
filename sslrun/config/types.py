"""Types and ranges that stand in the signatures of what a config builds, and marks on its nodes."""

from typing import Annotated, Any

from pydantic import Field

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]  # a part that leaves something over
PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Pair = Annotated[list[NotNegative], Field(min_length=2, max_length=2)]

Node = dict[str, Any]  # a part of the config with a `_target_`


class Also:
    """Marks a node that takes the keyword-only parameters of a second function or class besides its target's.

    Args:
        of: the second one.
        without: keys of the target's that the second one does not know, for a node whose target is not known yet.
    """

    def __init__(self, of: Any, without: tuple[str, ...] = ()) -> None:
        self.of, self.without = of, without


class Supplied:
    """Marks a node whose target takes these arguments from sslrun, by position, before the keys of its YAML."""

    def __init__(self, *names: str) -> None:
        self.names = names


class FromCheckpoint:
    """Marks a node that a checkpoint may fill in: its `_target_` may be null."""
