"""Which column of a label file says what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sslrun.base.errors import UserError
from sslrun.base.text import listed
from sslrun.config.names import nearest
from sslrun.data.image_names import NONE, ImageNames
from sslrun.data.label_table import Table
from sslrun.data.layout import role_of
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
CHECKED_ROWS = 1000  # in which the columns are recognized


@dataclass(frozen=True)
class Columns:
    """Positions of the columns of a label file, and whether its first row is a header."""

    file: int
    label: int
    split: int | None
    group: int | None
    header: bool
    names: tuple[str, ...]


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
    if groups is not None and "group" in given and (groups not in names or names.index(groups) != at["group"]):
        both = f"dataset.groups={groups} and dataset.columns={{group: {given['group']}}}"
        raise UserError(f"{both} differ: remove one")
    if groups in names:
        if groups.lower() in NAMES["label"] or groups == given.get("label"):
            raise UserError(f"dataset.groups={groups} is the column of the labels in {table.path}")
        at["group"] = names.index(groups)
    fits = {
        i: len({value for value, k in zip(values, column, strict=True) if k != NONE})
        for i, (values, column) in enumerate(zip(zip(*sample, strict=True), known, strict=True))
        if i not in at.values()
    }
    if "file" not in at:
        order = [n.lower() for n in names]
        usual = {order.index(n): -k for k, n in reversed([*enumerate(NAMES["file"])]) if n in order}
        fits = {i: n for i, n in fits.items() if order[i] not in INDEX and n} or fits  # row numbers may be names, too
        at["file"] = max(fits, key=lambda i: (fits[i], usual.get(i, -len(NAMES["file"])), -i), default=None)
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
        raise UserError(f"{table.path} {what} {text} (dataset.columns, {role}){hint or '.'} Columns: {listed(names)}")
    if text in table.nested:
        raise UserError(f"{table.path}: column {text} has lists or objects; a {role} must be text")
    return same[0]


def _by_name(role: Role, names: Sequence[str], at: Mapping[Role, int | None]) -> list[int]:
    lower = [n.lower() for n in names]
    return [i for n in NAMES[role] for i, name in enumerate(lower) if name == n and i not in at.values()]


def _is_split(i: int, rows: list[list[str]]) -> bool:
    values = {row[i] for row in rows if row[i]}
    return any(role_of(v) for v in values)


def _label(names: Sequence[str], at: Mapping[Role, int | None], table: Table) -> int:
    usable = [i for i, n in enumerate(names) if i not in at.values() and n.lower() not in INDEX
              and n not in table.nested]  # fmt: skip
    named = [i for i in _by_name("label", names, at) if i in usable]
    if len(usable) == 1 or named:
        return named[0] if named else usable[0]
    if not usable:
        raise UserError(f"{table.path} has no column with labels. Columns: {listed(names)}")
    raise UserError(
        f"{table.path}: which column is the label: {listed([names[i] for i in usable])}? Set "
        "dataset.columns={label: ...}"
    )


def _no_files(table: Table, names: Sequence[str], header: bool, images: ImageNames) -> str:
    if not table.rows[header:]:
        return f"{table.path} has only a header: {listed(names)}"
    first = next(iter(table.rows[header:]), [])
    return (
        f"{table.path} names no image of {images.top}: its first row is {listed(first)}, an image is "
        f"{images.names[0] if images.names else 'missing'}; columns: {listed(names)} (dataset.columns={{file: ...}})"
    )


def described(columns: Columns) -> str:
    """Return which columns are read as what, and which are not read."""
    used = _used(columns)
    rest = [name for i, name in enumerate(columns.names) if i not in {i for _, i in used} and name]
    text = ", ".join(f"{role} from {columns.names[i]}" for role, i in used)
    return f"{text}; not read: {listed(rest)}" if rest else text


def _used(columns: Columns) -> list[tuple[str, int]]:
    pairs = (("file", columns.file), ("label", columns.label), ("split", columns.split), ("group", columns.group))
    return [(role, i) for role, i in pairs if i is not None]
