"""Any folder of images."""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from sslrun.base.console import log_once
from sslrun.base.errors import UserError
from sslrun.base.text import counted
from sslrun.config.names import nearest
from sslrun.data.decode import SUFFIXES, relative
from sslrun.data.groups import KEY, described, grouped, matched, not_held_out, shared_groups
from sslrun.data.label_layout import OF_LABEL_FILES, ColumnNames, given_labels
from sslrun.data.labels import hashed_train_test_split
from sslrun.data.layout import FIRST, TEST, TRAIN, UNLABELED, VAL, Layout, Part, role_of, understood
from sslrun.data.sources.source import Listing, SplitName, with_validation
from sslrun.data.tree import Tree, normalized, read_tree


def folder(
    split: SplitName,
    *,
    root: str,
    labels: str | None = None,
    columns: ColumnNames | None = None,
    label_pattern: str | None = None,
    test_fraction: Annotated[float, Field(gt=0, le=1)] = 0.2,
    groups: str | None = None,
) -> Listing | None:
    """Any folder of images; docs/data.md shows the layouts.

    Args:
        labels: a label file: a path from the working directory, or else from `root`. By default it is looked for in
            and next to `root` if there are no class folders.
        columns: names of the label file's columns, by role, if they are not recognized.
        label_pattern: regular expression on the file name; its first group is the label.
        test_fraction: fraction of each class that is held out as test if there is no `test/`; 1: all images.
        groups: the groups that no split divides: a column of the label file, or a regular expression, see
            `data.groups.matched`; it is searched in the path below the root, without train/, val/ or test/.

    Raises:
        UserError: no such folder, no images in it, labels or groups that cannot be read, or classes in test that are
            not in train.
    """
    top = Path(root)
    if not top.is_dir():
        raise UserError(_no_folder(top))
    tree = read_tree(top)
    layout = _layout(tree, labels, columns, label_pattern, groups)
    if split == UNLABELED:
        images = sorted({p for f in layout.unlabeled for p in f}, key=lambda p: relative(p, top))
        images = _without_test_groups(images, layout, groups, test_fraction, top)
        return _listing(top, images, None, ()) if images else None
    _report(top, layout, tree)
    if not tree.top.count():
        raise UserError(_no_images(top, tree))
    return _split(layout, split, test_fraction, top, _group_of(layout, groups, top))


def _group_of(layout: Layout, groups: str | None, top: Path) -> dict[str, str] | None:
    """Return the group of each path, and log how many there are, and whether the splits have some in common.

    Args:
        groups: regular expression, unless the layout has the groups of a label file.
    """
    if groups is None and layout.groups is None:
        return None
    parts = {role: part for role, part in ((TRAIN, layout.train), (VAL, layout.val), (TEST, layout.test)) if len(part)}
    files = {role: part.paths() for role, part in parts.items()}
    paths = [p for of_role in files.values() for p in of_role]
    names = [_below_split(p, parts[role], layout) for role, of_role in files.items() for p in of_role]
    given = _given_groups(layout, paths, names, groups)
    source = f"{groups}{f' (no column of {layout.label_file})' if layout.label_file and layout.groups is None else ''}"
    found = grouped(names, given, source)
    of_path, in_groups = dict(zip(paths, found, strict=True)), dict(zip(paths, given, strict=True))
    notes = []
    for a, b in itertools.combinations(files, 2):
        if same := shared_groups(*([g for p in files[role] if (g := in_groups[p])] for role in (a, b))):
            named = ", ".join(same[:FIRST])
            notes.append(f"{a}/ and {b}/ have {counted(len(same), 'group')} in common ({KEY}): {named}")
    _log(top, [described(names, found)], notes, [])
    return of_path


def _below_split(path: str, part: Part, layout: Layout) -> str:
    """Return the path of an image below the folder of its split, or below the root if there is none."""
    name = normalized(relative(path, part.base))
    first, _, rest = name.partition("/")
    return rest if layout.labels_from and rest and role_of(first) else name


def _given_groups(
    layout: Layout, paths: Sequence[str], names: Sequence[str], pattern: str | None
) -> Sequence[str | None]:
    """Return the groups of images in the label file, or else those that an expression matches in their names."""
    if layout.groups is not None:
        return [layout.groups.get(p) for p in paths]
    assert pattern is not None
    return matched(names, pattern)


def _without_test_groups(
    images: list[str], layout: Layout, groups: str | None, test_fraction: float, top: Path
) -> list[str]:
    """Return the unlabeled images without those in a group of the test split."""
    if not images or (groups is None and layout.groups is None):
        return images
    try:
        test = _split(layout, "test", test_fraction, top, _group_of(layout, groups, top))
    except UserError:  # there is no test split, which only evaluate needs
        test = None
    of_test = set(test.groups or ()) if test else set()
    below = [normalized(relative(p, top)).partition("/") for p in images]
    names = [rest if rest and role_of(first) else first + slash + rest for first, slash, rest in below]
    given = _given_groups(layout, images, names, groups)
    kept = [p for p, group in zip(images, given, strict=True) if group not in of_test]
    if left_out := len(images) - len(kept):
        _log(top, [], [f"{counted(left_out, 'unlabeled image')} in groups of the test split are left out ({KEY})"], [])
    return kept


def _layout(
    tree: Tree, labels: str | None, columns: ColumnNames | None, pattern: str | None, groups: str | None
) -> Layout:
    """Return the layout of a folder, with given labels or those of its folders."""
    try:
        layout = understood(tree.top)
    except UserError:
        if labels is pattern is None:
            raise
        layout = Layout()  # folders that are unclear as classes, which they need not be
    given = given_labels(tree.top, layout, labels, columns, pattern, groups)
    if given and given.label_file:
        tree.use(given.label_file)
    return given or layout


def _no_folder(top: Path) -> str:
    if top.is_file():
        return f"{top} is a file: set dataset.root to the folder of the images, and dataset.labels={top}"
    return f"{top}: no such folder; if it has moved, set dataset.root=..."


def _no_images(top: Path, tree: Tree) -> str:
    """Return the message that a folder contains no images, with what it contains."""
    found = "; ".join([*tree.closed(), *tree.left_out()])
    return f"no images in {top} (looked for {' '.join(sorted(SUFFIXES))}){f'; found {found}' if found else ''}"


def unlabeled_folder(top: Path) -> Listing:
    """Return all images in and below a folder, without labels.

    Raises:
        UserError: no such folder, or no images in it.
    """
    if not top.is_dir():
        raise UserError(f"{top}: no such folder")
    return _listing(top, images_below(top), None, ())


def images_below(top: Path) -> list[str]:
    """Return the paths of all images in and below a folder, and log what is left out.

    Raises:
        UserError: there are none.
    """
    tree = read_tree(top)
    if not tree.top.count():
        raise UserError(_no_images(top, tree))
    _log(top, [], tree.closed(), tree.left_out())
    return tree.top.below()


def labeled_below(top: Path, labels: str | None) -> tuple[list[str], str, list[str]]:
    """Return the images of a folder that have a label, where the labels are, and notes on label files.

    Args:
        top: the folder.
        labels: path of a label file; None: that in or next to the folder, or else its class folders. Then no images are
            returned if all have a label, since that does not tell which labels are not to be used.

    Raises:
        UserError: the folder cannot be understood, or the label file cannot be read.
    """
    tree = read_tree(top)
    layout = _layout(tree, labels, None, None, None)
    images = [p for part in (layout.train, layout.val, layout.test) for c in part.classes.values() for p in c]
    every = labels is None and len(images) == tree.top.count()
    notes = [note for note in layout.notes if any(words in note for words in OF_LABEL_FILES)]
    return ([] if every else images), str(layout.label_file or f"the class folders of {top}"), notes


def class_folders(top: Path) -> list[str]:
    """Return the names of the classes in a folder, sorted; none if it has no class folders."""
    return sorted(understood(read_tree(top).top).train.classes) if top.is_dir() else []


def _split(
    layout: Layout, split: SplitName, test_fraction: float, top: Path, group_of: dict[str, str] | None
) -> Listing | None:
    """Return the train split, with given validation images, or the test split."""
    train, test, val = layout.train, layout.test, layout.val
    names = list(train.classes)
    if not len(train):
        if split == TEST:
            return _labeled(test, list(test.classes), group_of) if test.classes else None
        found = [name for name, n in ((TEST, len(test)), (VAL, len(val)), (UNLABELED, len(layout.unlabeled))) if n]
        raise UserError(f"{top} has no images to train on, only {'/, '.join(found)}/")
    if not names:
        return _listing(train.base, train.images, None, (), group_of) if split == TRAIN else None
    for role, part in ((TEST, test), (VAL, val)):
        if role == split or split == TRAIN:
            _refuse_unknown(top, role, part, names)
    if split == TEST and test.classes:
        return _labeled(test, names, group_of)
    listing = _labeled(train, names, group_of)
    if not test.classes:
        assert listing.labels is not None
        rows, held_out = hashed_train_test_split(listing.names, listing.labels, test_fraction, listing.groups)
        left = set(listing.labels[rows].tolist())
        without = [name for i, name in enumerate(names) if i not in left]
        if split == TRAIN and without:
            raise UserError(
                f"dataset.test_fraction={test_fraction:g} leaves no training image of {', '.join(without[:FIRST])}"
            )
        if split == TEST and not len(held_out):
            raise UserError(
                f"{top}: too few images for a test split (dataset.test_fraction={test_fraction:g} of each class)"
            )
        if group_of is not None and (untested := not_held_out(listing.labels, held_out, names)):
            _log(top, [], [f"no test images of {untested}: too few groups ({KEY})"], [])
        listing = listing.take(rows if split == TRAIN else held_out)
    return (
        with_validation(listing, _labeled(replace(val, base=str(top)), names, group_of))
        if split == TRAIN and val.classes
        else listing
    )


def _refuse_unknown(top: Path, role: str, part: Part, names: list[str]) -> None:
    unknown = sorted(set(part.classes) - set(names))
    if unknown:
        named, hint = ", ".join(unknown[:5]), nearest(unknown[0], names)
        raise UserError(f"{role}/ in {top} has classes that are missing in {TRAIN}/: {named}{hint}")


def _labeled(part: Part, names: list[str], group_of: dict[str, str] | None) -> Listing:
    found = [(p, i) for i, name in enumerate(names) for p in part.classes.get(name, [])]
    labels = np.array([i for _, i in found], dtype=np.int64)
    return _listing(part.base, [p for p, _ in found], labels, tuple(names), group_of)


def _listing(
    top: str | Path,
    files: list[str],
    labels: np.ndarray | None,
    classes: tuple[str, ...],
    group_of: dict[str, str] | None = None,
) -> Listing:
    names = [normalized(relative(f, top)) for f in files]
    if len(set(names)) < len(names):  # two files whose names differ only in Unicode's form
        names = [relative(f, top) for f in files]
    groups = None if group_of is None else [group_of[f] for f in files]
    return Listing(files, names, labels, classes, groups=groups)


def _report(top: Path, layout: Layout, tree: Tree) -> None:
    """Log how a folder is read, and what is left out."""
    read = []
    for name, part in ((TRAIN if layout.train_folder else "", layout.train), (TEST, layout.test), (VAL, layout.val)):
        if len(part):
            classes = counted(len(part.classes), "class") if part.classes else "no class folders"
            read.append(f"{name + '/ ' if name else ''}{counted(len(part), 'image')}, {classes}")
    if layout.labels_from:
        read.append(f"labels from {layout.labels_from}")
    if layout.unlabeled:
        read.append(f"{counted(sum(map(len, layout.unlabeled)), 'unlabeled image')}")
    empty = [f for f in tree.top.walk() if not f.count() and f.others.total() and not f.folders]
    vanished = [f.name for f in empty if not role_of(f.name)]
    notes = [*layout.notes]
    if vanished:
        notes.append(f"no class without images that can be read: {', '.join(vanished[:FIRST])}")
    _log(top, read, [*notes, *tree.closed()], tree.left_out())


def _log(top: Path, read: list[str], notes: list[str], left_out: list[str]) -> None:
    lines = [("; ".join(read), logging.INFO)] if read else []
    lines += [(note, logging.WARNING) for note in notes]
    lines += [(f"left out: {', '.join(left_out)}", logging.INFO)] if left_out else []
    for text, level in lines:
        log_once(top, f"{top}: {text}", level)
