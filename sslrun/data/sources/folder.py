"""Any folder of images."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.config.names import nearest
from sslrun.data.decode import find_images, is_image, relative
from sslrun.data.sources.source import Listing, SplitName, take_split

TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "val", "valid", "validation")


def folder(split: SplitName, *, root: str) -> Listing | None:
    """Any folder of images.

    Either `train/` and `test/` (or `val/`) with one folder per class; or one folder per class, of which a fifth becomes
    the test split; or unlabeled images, in any folders, for pretraining. `unlabeled/` next to `train/` adds unlabeled
    images to pretraining.

    Raises:
        UserError: no such folder, no images in it, or classes in test that are not in train.
    """
    top = Path(root)
    if not top.is_dir():
        raise UserError(f"{top}: no such folder; if it has moved, set dataset.root=...")
    train, test = _named(top, TRAIN_FOLDERS), _named(top, TEST_FOLDERS)
    if train is None:
        return None if split == "unlabeled" else _one_folder_per_class(_unwrapped(top), split)
    if split == "unlabeled":
        return unlabeled_folder(top / "unlabeled") if (top / "unlabeled").is_dir() else None
    if test is None:
        return _one_folder_per_class(train, split)
    classes = class_folders(train)
    if split == "test" and classes:
        unknown = sorted(set(class_folders(test)) - set(classes))
        if unknown:
            hint = nearest(unknown[0], classes)
            raise UserError(f"{test} has classes that are missing in {train}: {', '.join(unknown[:5])}{hint}")
    return _labeled(test if split == "test" else train, classes)


def _named(top: Path, names: tuple[str, ...]) -> Path | None:
    """Return the folder in `top` with the first of these names that exists, ignoring case."""
    folders = {e.name.lower(): e for e in sorted(top.iterdir()) if e.is_dir()}
    return next((folders[n] for n in names if n in folders), None)


def unlabeled_folder(top: Path) -> Listing:
    """Return all images in and below a folder, without labels.

    Raises:
        UserError: no such folder, or no images in it.
    """
    if not top.is_dir():
        raise UserError(f"{top}: no such folder")
    return _labeled(top, [])


def _one_folder_per_class(top: Path, split: SplitName) -> Listing | None:
    result = _labeled(top, class_folders(top))
    if result.labels is None:
        return result if split == "train" else None
    return take_split(result, split)


def class_folders(top: Path) -> list[str]:
    """Return the sorted names of the class folders; none if images are in `top` itself, or only in deeper folders."""
    if not top.is_dir():
        return []
    here = [e for e in sorted(top.iterdir()) if not e.name.startswith(".")]
    folders = [e for e in here if e.is_dir()]
    names = {e.name for e in folders if _has_image(e.iterdir())}
    stray = [e.name for e in here if e.is_file() and is_image(e.name)]
    if stray:
        if names:
            log.warning(
                "%s contains images (%s, ...) next to folders of images, so all images are unlabeled; "
                "to use the folders as classes, move these images elsewhere.", top, stray[0],
            )  # fmt: skip
        return []
    for e in folders:
        if not names or e.name in names:
            continue
        if {d.name for d in e.iterdir() if d.is_dir()} & names:
            log.warning("Skipped %s: it contains the same classes again.", e)
        elif find_images(e):
            names.add(e.name)
    return sorted(names)


def _has_image(entries: Iterable[Path]) -> bool:
    return any(is_image(e.name) and not e.name.startswith(".") and e.is_file() for e in entries)


def _unwrapped(top: Path) -> Path:
    """Descend into a folder that contains only one folder of class folders, as unpacked archives often do."""
    here = [e for e in top.iterdir() if not e.name.startswith(".") and (e.is_dir() or is_image(e.name))]
    if len(here) == 1 and here[0].is_dir() and class_folders(here[0]):
        log.info("The class folders are in %s.", here[0])
        return here[0]
    return top


def _labeled(top: Path, classes: list[str]) -> Listing:
    if classes:
        result = [(p, i) for i, c in enumerate(classes) if (top / c).is_dir() for p in find_images(top / c)]
        files, labels = [p for p, _ in result], np.array([i for _, i in result], dtype=np.int64)
    else:
        files, labels = find_images(top), None
    if not files:
        raise UserError(f"no images in {top} (looked for .jpg .png .webp .bmp .gif .tif)")
    return Listing(files, [relative(f, top) for f in files], labels, tuple(classes))
