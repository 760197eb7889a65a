"""The layout of a folder whose labels are in a label file or in the names of the images."""

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from sslrun.base.errors import UserError
from sslrun.base.text import counted
from sslrun.data.decode import relative
from sslrun.data.label_file import FileLabels, Role, file_of_labels, find_label_file, read_labels, refuse_unique
from sslrun.data.layout import FIRST, TEST, TRAIN, UNLABELED, VAL, Layout, Part
from sslrun.data.tree import Folder, normalized

ColumnNames = dict[Role, str | int]
OF_LABEL_FILES = ("not read", "without an image")  # words in the notes on label files


def given_labels(
    top: Folder,
    layout: Layout,
    labels: str | None,
    columns: ColumnNames | None,
    pattern: str | None,
    groups: str | None = None,
) -> Layout | None:
    """Return the layout of a folder whose labels are given; None if its class folders are the labels, or it has none.

    Args:
        top: the folder.
        layout: as recognized from its folders, of which only those for test and validation count.
        labels, columns, pattern, groups: see `sslrun.data.sources.folder.folder`.

    Raises:
        UserError: the labels cannot be read, or no image has one.
    """
    unused: list[str] = []
    if pattern is not None and not labels is columns is None:
        raise UserError("dataset.label_pattern reads labels from file names: remove dataset.labels and dataset.columns")
    paths = top.below()
    names = [normalized(relative(p, top.path)) for p in paths]
    if not names:
        return None
    if pattern is not None:
        out = _laid_out(paths, _by_pattern(names, pattern, layout), [None] * len(paths), layout, top.path)
        out.labels_from = f"file names ({pattern})"
        return out
    classes = {name for part in (layout.train, layout.test, layout.val) for name in part.classes}
    folder, notes = Path(top.path), layout.notes
    file: Path | None
    if labels is not None:
        file = file_of_labels(labels, folder)
    elif len(classes) < 2 or columns is not None:
        file, unused = find_label_file(folder, names, columns)
        notes += [f"not read as labels: {reason}" for reason in unused]
    else:
        if file := find_label_file(folder, names, next_to=False)[0]:
            notes.append(f"{file} is not read, since the folders are classes; dataset.labels={file} reads it")
        return None
    if file is None and columns is not None:
        raise UserError(
            f"dataset.columns needs a label file, found none in or next to {folder}: "
            f"{'; '.join(unused) or 'set dataset.labels'}"
        )
    if file is None:
        return None
    stat = file.stat()
    given = tuple(sorted(columns.items())) if columns else ()
    found = _read_once(file, (stat.st_mtime_ns, stat.st_size), tuple(names), given, folder, groups)
    layout.notes = [*found.notes]  # those on the folders may be wrong now
    out = _laid_out(paths, found.labels, found.splits, layout, top.path)
    out.label_file, out.labels_from = file, f"{file} ({found.summary})"
    if found.groups:
        out.groups = {p: group for p, group in zip(paths, found.groups, strict=True) if group is not None}
    return out


@lru_cache(maxsize=1)
def _read_once(
    file: Path,
    stamp: tuple[int, int],
    names: tuple[str, ...],
    columns: tuple[tuple[Role, str | int], ...],
    top: Path,
    groups: str | None,
) -> FileLabels:
    """Read a label file, once for all splits of a data set.

    Args:
        stamp: modification time and size of the file.
    """
    return read_labels(file, names, dict(columns), top, groups)


def _by_pattern(names: Sequence[str], pattern: str, layout: Layout) -> list[str | None]:
    """Return the label in each file name; None where the expression does not match."""
    layout.notes = []
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"dataset.label_pattern={pattern} is not a regular expression: {error}") from None
    matches = [expression.search(name.rpartition("/")[2]) for name in names]
    group = 1 if expression.groups else 0
    labels = [(m[group] or "").strip() or None if m else None for m in matches]
    without = [name for name, label in zip(names, labels, strict=True) if label is None]
    if len(without) == len(names):
        raise UserError(f"dataset.label_pattern={pattern} matches no file name, such as {names[0].rpartition('/')[2]}")
    if without:
        named = ", ".join(without[:FIRST])
        layout.notes.append(f"{counted(len(without), 'file name')} not matched by dataset.label_pattern: {named}")
    refuse_unique(labels, f"dataset.label_pattern={pattern}", "write an expression that matches fewer")
    return labels


def _laid_out(
    paths: Sequence[str], labels: Sequence[str | None], splits: Sequence[str | None], folders: Layout, base: str
) -> Layout:
    """Return the layout of images with these labels.

    Args:
        paths: N images.
        labels: the label of each, or None.
        splits: the split of each, or None: that of its folder, if it is one for test or validation, else train.
        folders: the layout as recognized from the folders alone.
        base: the folder.
    """
    roles = {p: role for role, part in ((TEST, folders.test), (VAL, folders.val)) for p in part.paths()}
    parts = {role: Part(base=base) for role in (TRAIN, TEST, VAL)}
    pool: list[str] = []
    without = {TEST: 0, VAL: 0}
    for path, label, split in zip(paths, labels, splits, strict=True):
        role = split or roles.get(path, TRAIN)
        if label is not None and role != UNLABELED:
            parts[role].classes.setdefault(label, []).append(path)
        elif role in without:
            without[role] += 1
        else:
            pool.append(path)
    for part in parts.values():
        part.classes = {name: part.classes[name] for name in sorted(part.classes)}
    out = Layout(parts[TRAIN], parts[TEST], parts[VAL], [pool] if pool else [], folders.notes)
    out.notes += [f"{counted(n, 'image')} for {role} without a label are left out" for role, n in without.items() if n]
    out.use_val_as_test()
    out.train_folder = bool(out.test.classes or out.val.classes)
    return out
