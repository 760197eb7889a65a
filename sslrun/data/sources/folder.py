"""Any folder of images."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.base.text import counted
from sslrun.config.names import nearest
from sslrun.data.decode import SUFFIXES, relative
from sslrun.data.labels import hashed_train_test_split
from sslrun.data.sources.source import Listing, SplitName, with_validation
from sslrun.data.tree import Folder, Tree, normalized, read_tree

TRAIN, TEST, VAL, UNLABELED = "train", "test", "val", "unlabeled"
ROLES = {  # names of folders, lower case, letters only -> role
    **dict.fromkeys(("train", "training", "trn"), TRAIN),
    **dict.fromkeys(("test", "testing", "tst"), TEST),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev"), VAL),
    UNLABELED: UNLABELED,
}
AFFIXES = ("images", "image", "imgs", "img", "dataset", "data", "set", "split", "seg")  # `seg_train`, `Test Set`
DATE = re.compile(r"(19|20)\d\d([-_. ]?\d\d){0,2}|\d\d[-_. ]\d\d[-_. ](19|20)?\d\d")
UNSURE = "_unsure"  # made by predict sort_into=
FIRST = 3  # names in a message


def folder(split: SplitName, *, root: str, test_fraction: Annotated[float, Field(gt=0, le=1)] = 0.2) -> Listing | None:
    """Any folder of images; docs/data.md shows the layouts.

    Args:
        test_fraction: fraction of each class that is held out as test if there is no `test/`; 1: all images.

    Raises:
        UserError: no such folder, no images in it, or classes in test that are not in train.
    """
    top = Path(root)
    if not top.is_dir():
        raise UserError(f"{top}: no such folder; if it has moved, set dataset.root=...")
    tree = read_tree(top)
    layout = understood(tree.top)
    if split != UNLABELED:
        _report(top, layout, tree)
    if split == UNLABELED:
        images = sorted({p for f in layout.unlabeled for p in f}, key=lambda p: relative(p, top))
        return _listing(top, images, None, ()) if images else None
    if not tree.top.count():
        raise UserError(_no_images(top, tree))
    return _split(layout, split, test_fraction, top)


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


def class_folders(top: Path) -> list[str]:
    """Return the names of the classes in a folder, sorted; none if it has no class folders."""
    return sorted(understood(read_tree(top).top).train.classes) if top.is_dir() else []


@dataclass
class Part:
    """The images of a split.

    Attributes:
        classes: paths of the images of each class, by name; empty without class folders.
        images: paths of the images without a class.
        base: folder to which the names of images are relative.
    """

    classes: dict[str, list[str]] = field(default_factory=dict)
    images: list[str] = field(default_factory=list)
    base: str = ""

    def __len__(self) -> int:
        return sum(map(len, self.classes.values())) + len(self.images)


@dataclass
class Layout:
    """How a folder is read.

    Attributes:
        train: also the test images, if there is no test folder.
        test, val: of folders with these roles; empty if there are none.
        unlabeled: paths of further images for pretraining.
        notes: what a user might not expect.
        train_folder: whether there is a folder with the role of train; else the whole folder is `train`.
    """

    train: Part = field(default_factory=Part)
    test: Part = field(default_factory=Part)
    val: Part = field(default_factory=Part)
    unlabeled: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    train_folder: bool = False


def understood(top: Folder) -> Layout:
    """Recognize the layout of a folder from the names and depths of its folders alone."""
    layout = Layout()
    top = _unwrapped(top)
    roles = _roles(top, layout)
    others = [f for f in top.filled() if f not in [g for fs in roles.values() for g in fs]]
    layout.train_folder = TRAIN in roles
    if roles.keys() & {TRAIN, TEST, VAL}:
        layout.unlabeled += [f.below() for f in roles.get(UNLABELED, [])]
        parts = {
            role: _joined([_part(_unwrapped(f, role), layout) for f in folders], top.path)
            for role, folders in roles.items()
            if role != UNLABELED
        }
        stray = [*top.images, *(p for f in others for p in f.below())]
        if stray:
            named = ", ".join([f.name for f in others][:FIRST]) or "in the folder itself"
            layout.notes.append(f"{counted(len(stray), 'image')} outside {'/, '.join(parts)}/ are left out ({named})")
        layout.train = parts.get(TRAIN, Part())
        layout.test, layout.val = parts.get(TEST, Part()), parts.get(VAL, Part())
        for role in (TEST, VAL):
            part = parts.get(role, Part())
            if part.images:
                layout.notes.append(
                    f"{counted(len(part.images), 'image')} of {role}/ are in no class folder, and are left out"
                )
        if layout.val.classes and not layout.test.classes:
            layout.test, layout.val = layout.val, Part()
            layout.notes.append(f"there is no {TEST}/ with class folders, so {VAL}/ is the test split")
    else:
        layout.train = _part(Folder(top.path, top.images, [*others, *roles.get(UNLABELED, [])]), layout)
    return layout


def _unwrapped(top: Folder, inside: str | None = None) -> Folder:
    """Descend into folders that contain only one folder of folders, as unpacked archives do.

    Args:
        inside: role of the folder; one of the same role may be in it, as in `seg_train/seg_train`.
    """
    while not top.images and len(filled := top.filled()) == 1:
        (only,) = filled
        if _role(only.name) not in (None, inside) or only.images or not only.filled():
            break
        top = only
    return top


def _role(name: str) -> str | None:
    """Return the role of a folder's name, in its usual spellings: `Training`, `test_images`, `seg_train`."""
    if name.lower() == UNSURE:
        return UNLABELED
    letters = re.sub(r"[^a-z]", "", name.lower()).replace("elled", "eled")
    for affix in AFFIXES:
        for short in (letters.removeprefix(affix), letters.removesuffix(affix)):
            if short in ROLES:
                return ROLES[short]
    return ROLES.get(letters)


def _roles(top: Folder, layout: Layout) -> dict[str, list[Folder]]:
    """Return the folders with a role; `train`, `test` and `val` with images directly in them may be classes."""
    found: dict[str, list[Folder]] = {}
    for f in top.folders:
        if (role := _role(f.name)) and f.count():
            found.setdefault(role, []).append(f)
        elif role:
            layout.notes.append(f"{f.name}/ has no images")
    splits = [f for role, folders in found.items() if role != UNLABELED for f in folders]
    siblings = [f for f in top.filled() if not _role(f.name)]
    if splits and siblings and not any(f.filled() for f in splits):
        named = ", ".join(f"{f.name}/" for f in splits)
        layout.notes.append(f"{named}: read as a class, since the images are directly in it, next to class folders")
        return {role: folders for role, folders in found.items() if role == UNLABELED}
    return found


def _part(top: Folder, layout: Layout) -> Part:
    """Return the images of a folder by class."""
    pool = [f for f in top.folders if _role(f.name) == UNLABELED]
    layout.unlabeled += [f.below() for f in pool if f.count()]
    folders = [f for f in top.filled() if f not in pool]
    if not folders:
        return Part(images=Folder(top.path, top.images).below(), base=top.path)
    classes = _classes(folders, layout)
    if not classes:
        return Part(images=Folder(top.path, top.images, folders).below(), base=top.path)
    if top.images:
        layout.unlabeled.append(list(top.images))
        layout.notes.append(f"{counted(len(top.images), 'image')} next to the class folders have no label")
    return Part(classes, base=top.path)


def _joined(parts: Sequence[Part], base: str) -> Part:
    """Return the images of all folders of a role: `train/` and `training/`, rarely more than one."""
    if len(parts) == 1:
        return parts[0]
    out = Part(base=base)
    for part in parts:
        out.images += part.images
        for name, images in part.classes.items():
            out.classes.setdefault(name, []).extend(images)
    return out


def _classes(folders: Sequence[Folder], layout: Layout) -> dict[str, list[str]]:
    """Return the images of each class; folders named like dates are no classes, those inside them may be."""
    names = {f.name for f in folders}
    again = [f for f in folders if len(folders) > 1 and not f.images and (below := _names(f)) and below < names]
    if again:
        images = sum(f.count() for f in again)
        named = ", ".join(f"{f.name}/" for f in again[:FIRST])
        layout.notes.append(f"{named}: {counted(images, 'image')} left out, since the classes are in it once more")
        folders = [f for f in folders if f not in again]
    if all(DATE.fullmatch(f.name) for f in folders):
        inside = [g for f in folders for g in f.filled()]
        if any(f.images for f in folders) or not inside or any(DATE.fullmatch(g.name) for g in inside):
            named = ", ".join([f.name for f in folders][:FIRST])
            layout.notes.append(f"folders named like dates are not read as classes ({named})")
            return {}
        folders = inside
    out: dict[str, list[str]] = {}
    for f in folders:
        out.setdefault(f.name, []).extend(f.below())
    return {name: out[name] for name in sorted(out)}


def _names(f: Folder) -> set[str]:
    return {g.name for g in f.filled()}


def _split(layout: Layout, split: SplitName, test_fraction: float, top: Path) -> Listing | None:
    """Return the train split, with given validation images, or the test split."""
    train, test, val = layout.train, layout.test, layout.val
    names = list(train.classes)
    if not len(train):
        if split == TEST:
            return _labeled(test, list(test.classes)) if test.classes else None
        raise UserError(f"{top} has no {TRAIN}/, only {TEST}/ or {VAL}/: there are no images to train on")
    if not names:
        return _listing(train.base, train.images, None, ()) if split == TRAIN else None
    for role, part in ((TEST, test), (VAL, val)):
        if role == split or (role, split) == (VAL, TRAIN):
            _refuse_unknown(top, role, part, names)
    if split == TEST and test.classes:
        return _labeled(test, names)
    listing = _labeled(train, names)
    if not test.classes:
        assert listing.labels is not None
        rows, held_out = hashed_train_test_split(listing.names, listing.labels, test_fraction)
        listing = listing.take(rows if split == TRAIN else held_out)
    return (
        with_validation(listing, _labeled(replace(val, base=str(top)), names))
        if split == TRAIN and val.classes
        else listing
    )


def _refuse_unknown(top: Path, role: str, part: Part, names: list[str]) -> None:
    unknown = sorted(set(part.classes) - set(names))
    if unknown:
        named, hint = ", ".join(unknown[:5]), nearest(unknown[0], names)
        raise UserError(f"{role}/ in {top} has classes that are missing in {TRAIN}/: {named}{hint}")


def _labeled(part: Part, names: list[str]) -> Listing:
    found = [(p, i) for i, name in enumerate(names) for p in part.classes.get(name, [])]
    labels = np.array([i for _, i in found], dtype=np.int64)
    return _listing(part.base, [p for p, _ in found], labels, tuple(names))


def _listing(top: str | Path, files: list[str], labels: np.ndarray | None, classes: tuple[str, ...]) -> Listing:
    names = [normalized(relative(f, top)) for f in files]
    if len(set(names)) < len(names):  # two files whose names differ only in Unicode's form
        names = [relative(f, top) for f in files]
    return Listing(files, names, labels, classes)


_logged: set[tuple[Path, str]] = set()  # lines logged by this process, which reads a folder for each split


def _report(top: Path, layout: Layout, tree: Tree) -> None:
    """Log how a folder is read, and what is left out."""
    read = []
    for name, part in ((TRAIN if layout.train_folder else "", layout.train), (TEST, layout.test), (VAL, layout.val)):
        if len(part):
            classes = counted(len(part.classes), "class") if part.classes else "no class folders"
            read.append(f"{name + '/ ' if name else ''}{counted(len(part), 'image')}, {classes}")
    if layout.unlabeled:
        read.append(f"{counted(sum(map(len, layout.unlabeled)), 'unlabeled image')}")
    empty = [f for f in tree.top.walk() if not f.count() and f.others.total() and not f.folders]
    vanished = [f.name for f in empty if not _role(f.name)]
    notes = [*layout.notes]
    if vanished:
        notes.append(f"no class without images that can be read: {', '.join(vanished[:FIRST])}")
    _log(top, read, [*notes, *tree.closed()], tree.left_out())


def _log(top: Path, read: list[str], notes: list[str], left_out: list[str]) -> None:
    lines = [("; ".join(read), logging.INFO)] if read else []
    lines += [(note, logging.WARNING) for note in notes]
    lines += [(f"left out: {', '.join(left_out)}", logging.INFO)] if left_out else []
    for text, level in lines:
        if (entry := (top.resolve(), text)) not in _logged:
            log.log(level, "%s: %s", top, text)
            _logged.add(entry)
