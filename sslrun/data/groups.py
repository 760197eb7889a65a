"""Groups of images that belong together, such as the frames of one object: a split never divides them."""

import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np

from sslrun.base.errors import UserError
from sslrun.base.text import counted, listed
from sslrun.data.tree import normalized

KEY = "dataset.groups"
FIRST = 3  # names in a message


def matched(names: Sequence[str], pattern: str) -> list[str | None]:
    """Return what the first group of a regular expression matches in each name, or else the whole match.

    Args:
        names: paths below the root, with forward slashes.
        pattern: searched anywhere in the name (`re.search`).

    Raises:
        UserError: the expression is invalid.
    """
    try:
        expression = re.compile(normalized(pattern))
    except re.error as error:
        raise UserError(f"{KEY}={pattern}: not a regular expression ({error})") from None
    group = 1 if expression.groups else 0
    return [(m[group] or None) if (m := expression.search(name)) else None for name in names]  # an empty match is none


def grouped(names: Sequence[str], found: Sequence[str | None], source: str) -> list[str]:
    """Return the group of each image; one without is a group of its own.

    Args:
        names: N paths.
        found: the group of each, or None.
        source: for the message.

    Raises:
        UserError: no image has a group, or all are in the same.
    """
    if names and not any(found):
        raise UserError(f"{KEY}={source}: matches no image; it is searched in paths such as {names[0]}")
    groups = [group or name for group, name in zip(found, names, strict=True)]
    if len(names) > 1 and len(set(groups)) == 1:
        raise UserError(
            f"{KEY}={source}: puts all {counted(len(names), 'image')} into one group ({groups[0]}), which no split "
            "can divide"
        )
    return groups


def described(names: Sequence[str], groups: Sequence[str]) -> str:
    """Return the number of groups, the largest, and the number of images that are groups of their own by their name."""
    (largest, n), *_ = Counter(groups).most_common(1)
    own = sum(name == group for name, group in zip(names, groups, strict=True))
    text = f"{counted(len(set(groups)), 'group')} of images ({KEY}), the largest {largest} with {n:,}"
    return f"{text}; {counted(own, 'image')} in no group" if own else text


def shared_groups(groups: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return the groups that two splits have in common, sorted."""
    return sorted(set(groups) & set(others))


def groups_per_class(labels: np.ndarray, groups: np.ndarray) -> dict[int, int]:
    """Return the number of groups with images of each class, sorted by class."""
    of_class: dict[int, set[str]] = {}
    for label, group in zip(labels.tolist(), groups.tolist(), strict=True):
        of_class.setdefault(label, set()).add(group)
    return {c: len(of_class[c]) for c in sorted(of_class)}


def held_out(labels: np.ndarray, groups: Sequence[str] | np.ndarray, targets: dict[int, int], salt: str) -> np.ndarray:
    """Choose whole groups to hold out, so that the number of images per class is close to its target.

    Groups are visited in the order of the hashes of their names, so that adding images moves few others. One is taken
    if that brings the counts closer to the targets in sum, and leaves another group of each of its classes. Then each
    class without any held-out image gets its smallest group, if another one is left.

    Args:
        labels: N integers.
        groups: N names.
        targets: number of images to hold out by class.
        salt: prefix of the hashed names; another one gives another split.

    Returns:
        Sorted positions. With at least two groups of each class, and no group of several classes, each class is on
        both sides; otherwise some may have no held-out image, but all have others.
    """
    members: dict[str, Counter[int]] = {}
    for label, group in zip(labels.tolist(), groups, strict=True):
        members.setdefault(group, Counter())[label] += 1
    missing, left = Counter(targets), Counter(c for images in members.values() for c in images)
    taken: set[str] = set()

    def gain(group: str) -> int:
        return sum(abs(missing[c]) - abs(missing[c] - n) for c, n in members[group].items())

    def spare(group: str) -> bool:
        return group not in taken and all(left[c] > 1 for c in members[group])

    def take(group: str) -> None:
        taken.add(group)
        missing.subtract(members[group])
        left.subtract(list(members[group]))

    order = sorted(members, key=lambda g: hashlib.sha256(f"{salt}{g}".encode("utf-8", "surrogateescape")).digest())
    for group in order:
        if gain(group) > 0 and spare(group):
            take(group)
    for c in sorted(targets.keys() - {c for group in taken for c in members[group]}):
        spared = [group for group in order if c in members[group] and spare(group)]
        if spared and not any(c in members[group] for group in taken):
            take(min(spared, key=lambda group: members[group].total()))
    return np.flatnonzero([group in taken for group in groups])


def not_held_out(labels: np.ndarray, rows: np.ndarray, class_names: Sequence[str]) -> str:
    """Return the first names of the classes of which none of these rows is, and the number of further ones."""
    without = [class_names[c] for c in sorted(set(labels.tolist()) - set(labels[rows].tolist()))]
    return listed(without, FIRST)


def group_folds(labels: np.ndarray, groups: np.ndarray, n: int, seed: int) -> list[np.ndarray]:
    """Return the sorted positions of n folds of whole groups, stratified by class as far as groups allow.

    If all groups of a class are in one fold, as may happen with groups of several classes, one is moved if that helps.

    Raises:
        ValueError: there are fewer groups, or fewer images of each class, than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    names, classes = (np.unique(a, return_inverse=True)[1] for a in (groups, labels))
    folds = StratifiedGroupKFold(n, shuffle=True, random_state=seed)
    fold_of = np.zeros(names.max() + 1, dtype=np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer images than folds
        for k, (_, rows) in enumerate(folds.split(labels, labels, names)):
            fold_of[names[rows]] = k
    has = np.zeros((len(fold_of), classes.max() + 1), dtype=bool)
    has[names, classes] = True

    def in_one_fold(fold_of: np.ndarray) -> list[int]:
        return [c for c, of in enumerate(has.T) if of.sum() > 1 and np.ptp(fold_of[of]) == 0]

    lost = in_one_fold(fold_of)
    for group in np.flatnonzero(has[:, lost].any(1)):
        for k in range(n):
            moved = np.where(np.arange(len(fold_of)) == group, k, fold_of)
            if len(in_one_fold(moved)) < len(lost):
                fold_of, lost = moved, in_one_fold(moved)
    return [np.flatnonzero(fold_of[names] == k) for k in range(n)]
