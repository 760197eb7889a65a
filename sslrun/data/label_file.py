"""Labels of images from a label file."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sslrun.base.errors import UserError
from sslrun.base.text import counted, listed
from sslrun.data.image_names import SEVERAL, ImageNames
from sslrun.data.label_columns import Columns, Role, described, recognized
from sslrun.data.label_table import SUFFIXES, read_table
from sslrun.data.layout import FIRST, role_of
from sslrun.data.tree import normalized

MISSING = frozenset({"nan", "na", "n/a", "null", "<na>", "#n/a"})  # values that programs write for none, lower case
MANY = 20  # classes; with more, a label that is different in most rows is none
HEAD = 1 << 18  # bytes of a file that may be a label file


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
    encoded = table.encoding == "Windows-1252"
    notes = [f"{path} is not in UTF-8; it is read as {table.encoding}"] if encoded else []
    notes += [f"{path}: {counted(len(missing), 'row')} without an image: {listed(missing, FIRST)}"] if missing else []
    out = FileLabels(
        path,
        _values("label", columns.label, rows, found, names, path),
        _splits(columns, rows, found, names, path),
        _values("group", columns.group, rows, found, names, path) if columns.group is not None else [],
        notes,
        described(columns),
    )
    out.notes += [*_missing(columns, rows, path), *_alike(out.labels, path), *_alike(out.groups, path)]
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


def _values(
    what: str, column: int, rows: list[list[str]], found: list[int], names: Sequence[str], path: Path
) -> list[str | None]:
    """Return the value of a column for each image; None where it is empty or there is no row."""
    out: list[str | None] = [None] * len(names)
    several: dict[int, str] = {}
    none = {"", *(v for v in {row[column] for row in rows} if v.lower() in MISSING)}
    for row, i in zip(rows, found, strict=True):
        if i < 0 or row[column] in none:
            continue
        value = row[column] if row[column].isascii() else normalized(row[column])
        if out[i] is not None and out[i] != value:
            several.setdefault(i, f"{names[i]} ({out[i]}, {value})")
        out[i] = value
    if several:
        raise UserError(
            f"{path}: {counted(len(several), 'image')} with more than one {what}: {listed([*several.values()], FIRST)}"
        )
    return out


def _missing(columns: Columns, rows: list[list[str]], path: Path) -> list[str]:
    """Return a line about labels that are read as none, such as nan."""
    found = [row[columns.label] for row in rows if row[columns.label].lower() in MISSING]
    named = listed(sorted(set(found)))
    return [f"{path}: {counted(len(found), 'row')} with {named} as label are read as without one"] if found else []


def _alike(values: Sequence[str | None], path: Path) -> list[str]:
    """Return a line about names that differ only in letter case or spaces."""
    spellings: dict[str, set[str]] = {}
    for value in sorted({v for v in values if v}):
        spellings.setdefault("".join(value.casefold().split()), set()).add(value)
    alike = [", ".join(sorted(names)) for names in spellings.values() if len(names) > 1]
    return [f"{path}: names that differ only in letter case or spaces: {'; '.join(alike[:FIRST])}"] if alike else []


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
        raise UserError(f"{path}: column {column} must say train, val or test, found {listed(unknown, FIRST)}")
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


def file_of_labels(labels: str, top: Path) -> Path:
    """Return the path of a given label file: from the working directory, or else from the folder of the images.

    Raises:
        UserError: there is no such file.
    """
    for path in (Path(os.path.expanduser(labels)), top / labels):
        if path.is_file():
            return path
    raise UserError(f"dataset.labels={labels}: no such file in the working directory or in {top}")


def find_label_file(
    top: Path, names: Sequence[str], given: Mapping[Role, str | int] | None = None, next_to: bool = True
) -> tuple[Path | None, list[str]]:
    """Find the label file in or next to a folder of images: most of its rows name images, and one column is a label.

    Args:
        top: the folder.
        names: paths of its images.
        given: see `read_labels`.
        next_to: look next to the folder, too.

    Returns:
        The file, or None, and why other files in the folder are not used.

    Raises:
        UserError: there are several.
    """
    above = top.parent if top.name not in ("", "..") else Path(os.path.abspath(top)).parent
    images, unused = None, []
    for folder in (top, above) if next_to else (top,):
        files = _label_files(folder)
        images = images or (ImageNames(names, top) if files else None)
        reasons = {f: _misfit(f, images, given or {}) for f in files if images}
        fit = [f for f, reason in reasons.items() if not reason]
        if len(fit) > 1:
            raise UserError(f"{listed([str(f) for f in fit])} are label files: choose one with dataset.labels=...")
        if fit:
            return fit[0], []
        unused += [reason for reason in reasons.values() if reason] if folder == top or given else []
    return None, unused


def _label_files(folder: Path) -> list[Path]:
    try:
        return sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and f.is_file())
    except OSError:
        return []


def _misfit(path: Path, images: ImageNames, given: Mapping[Role, str | int]) -> str | None:
    """Return why a file is not taken for the label file; None if it is."""
    try:
        table = read_table(path, HEAD)
        columns = recognized(table, images, given)
        rows = table.rows[columns.header :]
        found = [i for i in images.find_all([row[columns.file] for row in rows]) if i >= 0]
        labels: list[str | None] = [row[columns.label] or None for row in rows]
        _refuse_unique(labels, columns, path)
    except UserError as error:
        return str(error)
    if "submission" in path.name.lower():
        return f"{path} is a sample of predictions, by its name"
    enough = len(set(found)) > min(len(rows), len(images.names)) / 2
    if enough and not any(labels):
        return f"{path}: column {columns.names[columns.label]} is empty; write the class of each image there"
    if len({*labels} - {None}) < 2:
        return f"{path}: column {columns.names[columns.label]} has a single value"
    few = f"{path} names {counted(len(set(found)), 'image')} of {images.top} in its first {len(rows):,} rows"
    return None if enough else few
