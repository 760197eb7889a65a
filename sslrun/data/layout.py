"""How a folder of images is read: its splits and classes, recognized from the names and depths of its folders."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sslrun.base.errors import UserError
from sslrun.base.text import counted
from sslrun.data.tree import Folder

TRAIN, TEST, VAL, UNLABELED = "train", "test", "val", "unlabeled"
ROLES = {  # names of folders, lower case, letters only -> role
    **dict.fromkeys(("train", "training", "trn"), TRAIN),
    **dict.fromkeys(("test", "testing", "tst"), TEST),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev"), VAL),
    UNLABELED: UNLABELED,
}
AFFIXES = ("images", "image", "imgs", "img", "dataset", "data", "set", "split", "seg")  # `seg_train`, `Test Set`
DATE = re.compile(r"(19|20)\d\d([-_. ]?\d\d){0,2}|\d\d[-_. ]\d\d[-_. ](19|20)?\d\d")
UNSURE, UNLIKE, TO_SORT = "_unsure", "_unlike_training", "to_sort"  # made by predict sort_into= and by suggest
FIRST = 3  # names in a message


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

    def paths(self) -> list[str]:
        """Return the paths of all images."""
        return [*self.images, *(p for images in self.classes.values() for p in images)]


@dataclass
class Layout:
    """How a folder is read.

    Attributes:
        train: also the test images, if there is no test folder.
        test, val: of folders with these roles; empty if there are none.
        unlabeled: paths of further images for pretraining.
        notes: what a user might not expect.
        train_folder: whether there is a folder with the role of train; else the whole folder is `train`.
        labels_from: what the labels are read from, if not from the names of folders.
        label_file: path of the label file, if there is one.
        groups: group by path, of the images that have one in the label file; None without such a column.
    """

    train: Part = field(default_factory=Part)
    test: Part = field(default_factory=Part)
    val: Part = field(default_factory=Part)
    unlabeled: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    train_folder: bool = False
    labels_from: str = ""
    label_file: Path | None = None
    groups: dict[str, str] | None = None

    def use_val_as_test(self) -> None:
        """Make validation the test split, if there is no other."""
        if self.val.classes and not self.test.classes:
            self.test, self.val = self.val, Part()
            self.notes.append(f"there is no {TEST}/ with labels, so {VAL}/ is the test split")


def understood(top: Folder) -> Layout:
    """Recognize the layout of a folder from the names and depths of its folders alone."""
    layout = Layout()
    top = _unwrapped(top, layout)
    roles = _roles(top, layout)
    others = [f for f in top.filled() if f not in [g for fs in roles.values() for g in fs]]
    layout.train_folder = TRAIN in roles
    if roles.keys() & {TRAIN, TEST, VAL}:
        layout.unlabeled += [f.below() for f in roles.get(UNLABELED, [])]
        for role, folders in roles.items():
            if len(folders) > 1 and role != UNLABELED:
                layout.notes.append(f"{', '.join(f'{f.name}/' for f in folders)} are all read as {role}")
        parts = {
            role: _joined([_part(_unwrapped(f, layout, role), layout, role) for f in folders], top.path)
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
        layout.use_val_as_test()
    else:
        layout.train = _part(Folder(top.path, top.images, [*others, *roles.get(UNLABELED, [])]), layout)
    if not layout.train and layout.unlabeled:
        layout.train = Part(images=[p for pool in layout.unlabeled for p in pool], base=top.path)
        layout.unlabeled = []
        layout.notes.append("the only training images are in folders of unlabeled ones")
    return layout


def _unwrapped(top: Folder, layout: Layout, inside: str | None = None) -> Folder:
    """Descend into folders that contain only one folder of folders, as unpacked archives do.

    Args:
        inside: role of the folder; one of the same role may be in it, as in `seg_train/seg_train`.
    """
    while not top.images and len(filled := [f for f in top.filled() if role_of(f.name) != UNLABELED]) == 1:
        (only,) = filled
        is_split = role_of(only.name) is not None if inside is None else role_of(only.name) != inside
        if is_split or only.images or not only.filled():
            break
        pool = [p for f in top.filled() if f is not only for p in f.below()]
        _add_unlabeled(pool, layout, inside or TRAIN)
        top = only
    return top


def role_of(name: str) -> str | None:
    """Return the role of a folder's name, in its usual spellings: `Training`, `test_images`, `seg_train`."""
    if name.lower() in (UNSURE, UNLIKE, TO_SORT):
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
        if (role := role_of(f.name)) and f.count():
            found.setdefault(role, []).append(f)
        elif role:
            layout.notes.append(f"{f.name}/ has no images")
    splits = [f for role, folders in found.items() if role != UNLABELED for f in folders]
    if splits and not _splits(top):
        named = ", ".join(f"{f.name}/" for f in splits)
        layout.notes.append(f"{named}: read as a class, since the images are directly in it, next to class folders")
        return {role: folders for role, folders in found.items() if role == UNLABELED}
    return found


def _part(top: Folder, layout: Layout, role: str = TRAIN) -> Part:
    """Return the images of a folder by class; those without a class are for pretraining, unless it is a test folder."""
    pool = [f for f in top.filled() if role_of(f.name) == UNLABELED]
    _add_unlabeled([p for f in pool for p in f.below()], layout, role)
    folders = [f for f in top.filled() if f not in pool]
    if not folders:
        return Part(images=Folder(top.path, top.images).below(), base=top.path)
    classes = _classes(folders, layout)
    if not classes:
        return Part(images=Folder(top.path, top.images, folders).below(), base=top.path)
    if top.images:
        _add_unlabeled(top.images, layout, role)
        layout.notes.append(f"{counted(len(top.images), 'image')} next to the class folders have no label")
    return Part(classes, base=top.path)


def _add_unlabeled(images: Sequence[str], layout: Layout, role: str) -> None:
    """Add images without a class to those for pretraining; those in a folder for test or validation are left out."""
    if images and role == TRAIN:
        layout.unlabeled.append(list(images))
    elif images:
        layout.notes.append(f"{counted(len(images), 'image')} of {role}/ without a class are left out")


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
    for f in folders:
        if splits := _splits(f):
            inside = ", ".join(f"{g.name}/" for g in splits)
            raise UserError(f"{f.path} contains {inside}: set dataset.root to the folder with the splits, or rename")
    again = [f for f in folders if not f.images and len(below := _names(f)) > 1 and below == names - {f.name}]
    if again:
        images = sum(f.count() for f in again)
        named = ", ".join(f"{f.name}/" for f in again[:FIRST])
        layout.notes.append(f"{named}: {counted(images, 'image')} left out, since the classes are in it once more")
        folders = [f for f in folders if f not in again]
    dates = [f for f in folders if DATE.fullmatch(f.name)]
    if dates and len(dates) == len(folders):
        inside_dates = [g for f in folders for g in f.filled()]
        found = [g for g in inside_dates if role_of(g.name) != UNLABELED]
        if any(f.images for f in folders) or not found or any(DATE.fullmatch(g.name) for g in found):
            layout.notes.append(f"folders named like dates are not read as classes ({_first(dates)})")
            return {}
        layout.unlabeled += [g.below() for g in inside_dates if g not in found]
        folders = found
    elif dates:
        layout.notes.append(f"classes named like dates, next to others: {_first(dates)}")
    out: dict[str, list[str]] = {}
    for f in folders:
        out.setdefault(f.name, []).extend(f.below())
    return {name: out[name] for name in sorted(out)}


def _first(folders: Sequence[Folder]) -> str:
    return ", ".join([f.name for f in folders][:FIRST])


def _splits(top: Folder) -> list[Folder]:
    """Return the folders in a folder that are splits: with such a name, and with class folders or without others."""
    splits = [f for f in top.filled() if role_of(f.name) not in (None, UNLABELED)]
    others = [f for f in top.filled() if not role_of(f.name)]
    return splits if any(f.filled() for f in splits) or not others else []


def _names(f: Folder) -> set[str]:
    return {g.name for g in f.filled()}
