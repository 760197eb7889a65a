"""Labels of images from a label file: which of its columns says what, and which row belongs to which image."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sslrun.base.errors import UserError
from sslrun.base.text import counted
from sslrun.config.names import nearest
from sslrun.data.image_names import NONE, SEVERAL, ImageNames
from sslrun.data.label_table import SUFFIXES, Table, read_table
from sslrun.data.layout import FIRST, role_of
from sslrun.data.tree import normalized

Role = Literal["file", "label", "split", "group"]
# Usual names of columns, lower case, the most specific first.
NAMES: dict[Role, tuple[str, ...]] = {
    "file": ("file", "file_name", "filename", "path", "filepath", "file_path", "image", "image_path", "image_id", "id"),
    "label": ("label", "labels", "class", "class_name", "category", "species", "breed", "diagnosis", "target", "y"),
    "split": ("split", "set", "subset", "partition"),
    "group": (),
}
INDEX = ("", "unnamed: 0", "index")  # columns of row numbers, as pandas writes them
MANY = 20  # classes; with more, a label that is different in most rows is none
CHECKED_ROWS = 1000  # in which the columns are recognized
HEAD = 1 << 18  # bytes of a file that may be a label file


@dataclass(frozen=True)
class Columns:
    """Positions of the columns of a label file, and whether its first row is a header."""

    file: int
    label: int
    split: int | None
    group: int | None
    header: bool
    names: tuple[str, ...]


@dataclass
class FileLabels:
    """What a label file says about N images.

    Attributes:
        path: of the label file.
        labels: the label of each image, or None.
        splits: `train`, `val`, `test` or `unlabeled` of each image, or None.
        groups: the group of each image, or None; empty without a column of groups.
        notes: what a user might not expect.
        summary: which columns were read.
    """

    path: Path
    labels: list[str | None]
    splits: list[str | None]
    groups: list[str | None]
    notes: list[str]
    summary: str


def read_labels(
    path: Path,
    names: Sequence[str],
    given: Mapping[Role, str | int] | None = None,
    top: str | Path = "",
    groups: str | None = None,
) -> FileLabels:
    """Read a label file, and match its rows with images.

    Args:
        path: of the label file.
        names: N paths of the images below `top`, with forward slashes.
        given: names, or numbers from 1, of columns; others are recognized by content or name.
        top: the folder of the images, for paths that begin above it and for messages.
        groups: if there is a column of this name, it has the groups.

    Raises:
        UserError: the file cannot be read, a column is missing or unclear, no row fits an image, an image has two
            labels, or a name fits several images.
    """
    table, images = read_table(path), ImageNames(names, top)
    columns = recognized(table, images, given or {}, groups)
    rows = table.rows[1:] if columns.header else table.rows
    values = [row[columns.file] for row in rows]
    found = images.find_all(values)
    _refuse_several(values, found, images, path)
    missing = [value for value, i in zip(values, found, strict=True) if i < 0 and value]
    notes = [f"{path}: {counted(len(missing), 'row')} without an image: {_first(missing)}"] if missing else []
    out = FileLabels(
        path,
        _values("label", columns.label, rows, found, names, path),
        _splits(columns, rows, found, names, path),
        _values("group", columns.group, rows, found, names, path) if columns.group is not None else [],
        notes,
        ", ".join(f"{role} from {columns.names[i]}" for role, i in _used(columns)),
    )
    _refuse_unique(out.labels, columns, path)
    if not any(out.labels):
        raise UserError(f"{path}: no image has a label in column {columns.names[columns.label]}")
    return out


def _refuse_unique(labels: Sequence[str | None], columns: Columns, path: Path) -> None:
    source = f"column {columns.names[columns.label]} of {path}"
    refuse_unique(labels, source, "set dataset.columns={label: ...}")


def _refuse_several(values: Sequence[str], found: Sequence[int], images: ImageNames, path: Path) -> None:
    unclear = list(dict.fromkeys(value for value, i in zip(values, found, strict=True) if i == SEVERAL))
    if unclear:
        fit = " and ".join(images.several(unclear[0])[:2])
        others = f" (and {counted(len(unclear) - 1, 'other name')})" if len(unclear) > 1 else ""
        raise UserError(f"{path}: {unclear[0]} fits {fit}{others}: write paths below {images.top}")


def _used(columns: Columns) -> list[tuple[str, int]]:
    pairs = (("file", columns.file), ("label", columns.label), ("split", columns.split), ("group", columns.group))
    return [(role, i) for role, i in pairs if i is not None]


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:FIRST]) + (f" and {len(names) - FIRST:,} more" if len(names) > FIRST else "")


def _values(
    what: str, column: int, rows: list[list[str]], found: list[int], names: Sequence[str], path: Path
) -> list[str | None]:
    """Return the value of a column for each image; None where it is empty or there is no row."""
    out: list[str | None] = [None] * len(names)
    several: dict[int, str] = {}
    for row, i in zip(rows, found, strict=True):
        if i < 0 or not row[column]:
            continue
        value = row[column] if row[column].isascii() else normalized(row[column])
        if out[i] is not None and out[i] != value:
            several.setdefault(i, f"{names[i]} ({out[i]}, {value})")
        out[i] = value
    if several:
        raise UserError(
            f"{path}: {counted(len(several), 'image')} with more than one {what}: {_first([*several.values()])}"
        )
    return out


def _splits(
    columns: Columns, rows: list[list[str]], found: list[int], names: Sequence[str], path: Path
) -> list[str | None]:
    if columns.split is None:
        return [None] * len(names)
    values = _values("split", columns.split, rows, found, names, path)
    roles = {value: role_of(value) for value in {v for v in values if v}}
    unknown = sorted(value for value, role in roles.items() if role is None)
    if unknown:
        column = columns.names[columns.split]
        raise UserError(f"{path}: column {column} must say train, val or test, found {_first(unknown)}")
    return [roles[value] if value else None for value in values]


def refuse_unique(labels: Sequence[str | None], source: str, advice: str) -> None:
    """Refuse labels most of which are different, such as names, ages or numbers.

    Args:
        labels: the label of each image, or None.
        source, advice: for the message.

    Raises:
        UserError: there are more than 20 classes, and more than half as many as labels.
    """
    known = [v for v in labels if v is not None]
    classes = len(set(known))
    if classes > MANY and classes > len(known) / 2:
        raise UserError(
            f"{source} gives {classes:,} classes for {counted(len(known), 'image')}, too many to learn: {advice}"
        )


def recognized(table: Table, images: ImageNames, given: Mapping[Role, str | int], groups: str | None = None) -> Columns:
    """Return which column is which: given, by content (file names, splits), by name, or the only one left.

    Raises:
        UserError: a given column is missing, no column has file names, or the label's column is unclear.
    """
    step = max(1, len(table.rows) // CHECKED_ROWS)
    sample = table.rows[::step]
    known = _known(sample, images)
    header = table.columns is None and _is_header(table.rows[0], [column[0] for column in known])
    names = table.columns or (table.rows[0] if header else [str(i + 1) for i in range(len(table.rows[0]))])
    at: dict[Role, int | None] = {role: _position(role, value, names, table) for role, value in given.items()}
    if groups in names:
        if "group" in given and at["group"] != names.index(groups):
            raise UserError(
                f"dataset.groups={groups} and dataset.columns={{group: {given['group']}}} differ: remove one"
            )
        at["group"] = names.index(groups)
    fits = {i: len({k for k in column if k >= 0}) for i, column in enumerate(known) if i not in at.values()}
    if "file" not in at:
        order = [n.lower() for n in names]
        named = {order.index(n): -k for k, n in reversed([*enumerate(NAMES["file"])]) if n in order}
        at["file"] = max(fits, key=lambda i: (fits[i], named.get(i, -len(NAMES["file"])), -i), default=None)
        if at["file"] is None or not fits[at["file"]]:
            raise UserError(_no_files(table, names, header, images))
    if "split" not in at:
        at["split"] = next((i for i in _by_name("split", names, at) if _is_split(i, sample[header:])), None)
    if "label" not in at:
        at["label"] = _label(names, at, table)
    file, label = at["file"], at["label"]
    assert file is not None
    assert label is not None
    return Columns(file, label, at["split"], at.get("group"), header, tuple(names))


def _known(rows: list[list[str]], images: ImageNames) -> list[list[int]]:
    """Return, for each column, the images that its values name."""
    return [images.find_all(values) for values in zip(*rows, strict=True)]


def _is_header(row: Sequence[str], images: Sequence[int]) -> bool:
    """Return whether the first row has names of columns; an image may be called `image`, too."""
    usual = {name for names in NAMES.values() for name in names} | {*INDEX}
    return all(i == NONE for i in images) or {v.lower() for v in row} <= usual


def _position(role: Role, value: str | int, names: Sequence[str], table: Table) -> int:
    """Return the position of a given column."""
    text = str(value)
    same = [i for i, n in enumerate(names) if normalized(n) == normalized(text)]
    if not same and isinstance(value, int) and 1 <= value <= len(names):
        same = [value - 1]
    if len(same) != 1:
        what = "has no column" if not same else "has more than one column"
        hint = nearest(text, list(names)) if not same else ""
        raise UserError(f"{table.path} {what} {text} (dataset.columns, {role}){hint or '.'} Columns: {_all(names)}")
    if text in table.nested:
        raise UserError(f"{table.path}: column {text} has lists or objects; a {role} must be text")
    return same[0]


def _by_name(role: Role, names: Sequence[str], at: Mapping[Role, int | None]) -> list[int]:
    lower = [n.lower() for n in names]
    return [i for n in NAMES[role] for i, name in enumerate(lower) if name == n and i not in at.values()]


def _is_split(i: int, rows: list[list[str]]) -> bool:
    values = {row[i] for row in rows if row[i]}
    return bool(values) and all(role_of(v) for v in values)


def _label(names: Sequence[str], at: Mapping[Role, int | None], table: Table) -> int:
    usable = [i for i, n in enumerate(names) if i not in at.values() and n.lower() not in INDEX
              and n not in table.nested]  # fmt: skip
    named = [i for i in _by_name("label", names, at) if i in usable]
    if len(usable) == 1 or named:
        return named[0] if named else usable[0]
    if not usable:
        raise UserError(f"{table.path} has no column with labels. Columns: {_all(names)}")
    raise UserError(
        f"{table.path}: which column is the label: {_all([names[i] for i in usable])}? Set "
        "dataset.columns={label: ...}"
    )


def _no_files(table: Table, names: Sequence[str], header: bool, images: ImageNames) -> str:
    first = next(iter(table.rows[header:]), [])
    return (
        f"{table.path} names no image of {images.top}: its first row is {_all(first)}, an image is "
        f"{images.names[0] if images.names else 'missing'}; columns: {_all(names)} (dataset.columns={{file: ...}})"
    )


def _all(values: Sequence[str]) -> str:
    return ", ".join(values[:10]) + (" ..." if len(values) > 10 else "")


def file_of_labels(labels: str, top: Path) -> Path:
    """Return the path of a given label file: from the working directory, or else from the folder of the images.

    Raises:
        UserError: there is no such file.
    """
    for path in (Path(os.path.expanduser(labels)), top / labels):
        if path.is_file():
            return path
    raise UserError(f"dataset.labels={labels}: no such file in the working directory or in {top}")


def find_label_file(top: Path, names: Sequence[str], next_to: bool = True) -> Path | None:
    """Return the label file in or next to a folder of images: most of its rows name images, and one column is a label.

    Args:
        top: the folder.
        names: paths of its images.
        next_to: look next to the folder, too.

    Raises:
        UserError: there are several.
    """
    above = top.parent if top.name not in ("", "..") else Path(os.path.abspath(top)).parent
    images = None
    for folder in (top, above) if next_to else (top,):
        files = _label_files(folder)
        images = images or (ImageNames(names, top) if files else None)
        fit = [f for f in files if images and _fits(f, images)]
        if len(fit) > 1:
            raise UserError(f"{_all([str(f) for f in fit])} are label files: choose one with dataset.labels=...")
        if fit:
            return fit[0]
    return None


def _label_files(folder: Path) -> list[Path]:
    try:
        return sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and f.is_file())
    except OSError:
        return []


def _fits(path: Path, images: ImageNames) -> bool:
    try:
        table = read_table(path, HEAD)
        columns = recognized(table, images, {})
        rows = table.rows[columns.header :]
        found = [i for i in images.find_all([row[columns.file] for row in rows]) if i >= 0]
        labels: list[str | None] = [row[columns.label] or None for row in rows]
        _refuse_unique(labels, columns, path)
    except UserError:
        return False
    return len(set(found)) > min(len(rows), len(images.names)) / 2
