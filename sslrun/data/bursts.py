"""Proposes groups of images: near duplicates of a class whose names show that they belong together."""

import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

EXPRESSIONS = (
    *(
        rf"([^/]+){number}\." for number in (r"_\d+", r"-\d+", r"\.\d+", r" \d+", r" \(\d+\)")
    ),  # without the last number
    *(rf"([^/]+){s}[^/{s}]*$" for s in "_- "),  # without the last part
    *(rf"([^/{s}]+){s}[^/]*$" for s in "_- "),  # the first part
    r"([^/]+)/[^/]*$",  # the folder
)
MIN_SHARE = 0.05  # fraction of the images that have near duplicates; below, these may be accidents
MIN_COVERED = 0.9  # fraction of them that an expression puts together
MIN_GROUPS = 3  # per class on average
MIN_SIZE = 2  # images per group on average
GAP = 3  # largest difference of consecutive numbers
NUMBER = re.compile(r"(.*?)(\d+)([^\d/]*)")  # what is before the last number, the number, and what is after it
Place = tuple[str, str, int]  # what is before and after the last number of a name, and the number


@dataclass(frozen=True)
class Proposal:
    """Groups of N images, read from their names.

    Attributes:
        expression: regular expression that gives them; None if only consecutive numbers show them.
        groups: the group of each image; its own name if it is in none.
    """

    expression: str | None
    groups: list[str]


def proposed(names: Sequence[str], labels: np.ndarray, duplicates: Sequence[Sequence[int]]) -> Proposal | None:
    """Propose groups that put near duplicates of a class together, if their names show which these are.

    Of the expressions that put at least nine tenths of them together, and make several groups of several images, the
    one with the most groups is chosen. Without such an expression, near duplicates with consecutive numbers are runs.

    Args:
        names: N paths below the root.
        labels: N integers.
        duplicates: sets of positions of near duplicates.
    """
    sets = [s for d in duplicates for s in _per_class(d, labels)]
    size = sum(map(len, sets))
    if size < MIN_SHARE * len(names):
        return None
    best: Proposal | None = None
    for expression in EXPRESSIONS:
        found = [re.search(expression, name) for name in names]
        groups = [m[1] if m else name for m, name in zip(found, names, strict=True)]
        n = len(set(groups))
        fits = MIN_GROUPS * len(np.unique(labels)) <= n <= len(names) / MIN_SIZE
        if fits and _together(sets, groups) >= MIN_COVERED * size and (best is None or n > len(set(best.groups))):
            best = Proposal(expression, groups)
    return best or _runs(names, sets)


def _per_class(duplicates: Sequence[int], labels: np.ndarray) -> Iterator[list[int]]:
    of_class: dict[int, list[int]] = {}
    for i in duplicates:
        of_class.setdefault(int(labels[i]), []).append(i)
    yield from (s for s in of_class.values() if len(s) > 1)


def _together(sets: Sequence[Sequence[int]], groups: Sequence[str]) -> int:
    """Return the number of images that are in one group with most of their near duplicates."""
    largest = (Counter(groups[i] for i in s).most_common(1)[0][1] for s in sets)
    return sum(n for n in largest if n > 1)


def _runs(names: Sequence[str], sets: Sequence[Sequence[int]]) -> Proposal | None:
    """Return runs of consecutive numbers from the first to the last of near duplicates; None if most are in no run."""
    places = {i: (m[1], m[3], int(m[2])) for i, name in enumerate(names) if (m := NUMBER.fullmatch(name))}
    chunks = [c for s in sets for c in _consecutive(sorted(places[i] for i in s if i in places)) if len(c) > 1]
    if 2 * sum(map(len, chunks)) < sum(map(len, sets)):
        return None
    groups, positions = list(names), sorted(places, key=lambda i: places[i])
    for first, last in _merged([(c[0], c[-1]) for c in chunks]):
        begin = bisect_left(positions, first, key=lambda i: places[i])
        members = positions[begin : bisect_right(positions, last, key=lambda i: places[i])]
        for i in members:
            groups[i] = names[members[0]].rpartition(".")[0]
    return Proposal(None, groups)


def _consecutive(places: Sequence[Place]) -> list[list[Place]]:
    """Divide sorted places where the rest of the name changes, or the number by more than a small gap."""
    out: list[list[Place]] = []
    for place in places:
        if out and out[-1][-1][:2] == place[:2] and place[2] - out[-1][-1][2] <= GAP:
            out[-1].append(place)
        else:
            out.append([place])
    return out


def _merged(runs: Sequence[tuple[Place, Place]]) -> list[tuple[Place, Place]]:
    """Return overlapping runs, from the first to the last place, as one."""
    out: list[tuple[Place, Place]] = []
    for first, last in sorted(runs):
        if out and first <= out[-1][1]:
            out[-1] = out[-1][0], max(last, out[-1][1])
        else:
            out.append((first, last))
    return out
