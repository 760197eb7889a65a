"""Files that are made whole or not at all, and places that take nothing away from what is there."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sslrun.base.errors import UserError


def new_file(key: str, path: Path) -> Path:
    """Make sure, before any work is done, that a file can be made; its folder is made.

    Raises:
        UserError: it is there already, or its folder cannot be made.
    """
    refuse_file(key, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{key}={path}: {path.parent} cannot be made: {error.strerror}") from None
    return path


def refuse_file(key: str, path: Path) -> None:
    """Let nothing that is there be overwritten.

    Raises:
        UserError: the file is there already.
    """
    if os.path.lexists(path):
        raise UserError(f"{key}={path} is there already: name a new file")


def refuse_folder(key: str, path: Path) -> None:
    """Let nothing be mixed with what is there.

    Raises:
        UserError: the folder is there already and not empty.
    """
    if os.path.lexists(path) and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{key}={path} is there already and not empty: name a new folder")


def new_folder(key: str, path: Path) -> Path:
    """Make a folder to write into, or take an empty one.

    Raises:
        UserError: it is there already and not empty, or cannot be made.
    """
    refuse_folder(key, path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{key}={path}: cannot be made: {error.strerror}") from None
    return path


@contextmanager
def replacing(path: Path, before: Path | None = None) -> Iterator[Path]:
    """Yield the path of a temporary file; when all is written, and on the disk, it takes the place of `path`.

    If anything goes wrong, `path` is as it was, and nothing is left beside it.

    Args:
        before: where the file goes that `path` was before; None drops it.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        if before is not None and path.exists():
            os.replace(path, before)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # it is there if something went wrong, or a signal came


@contextmanager
def creating(path: Path, key: str, suffix: str) -> Iterator[Path]:
    """Yield the path of a temporary file; when the block ends, it is put in place under a name of its own.

    Args:
        key: of the config, for the message.
        suffix: of the temporary file.

    Raises:
        UserError: another has taken the name.
    """
    temporary = path.with_name(f".part_{os.getpid()}{suffix}")
    try:
        yield temporary
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    put_in_place(temporary, path, key)


def put_in_place(temporary: Path, path: Path, key: str) -> None:
    """Give a file that is whole its name, which no other has taken meanwhile.

    Raises:
        UserError: another has; the file keeps the name that it has.
    """
    try:
        os.link(temporary, path)  # where a rename would replace
    except FileExistsError:
        raise UserError(f"{key}={path} was made by somebody else meanwhile: this one is {temporary}") from None
    except OSError:  # a file system without links
        if os.path.lexists(path):
            raise UserError(f"{key}={path} was made by somebody else meanwhile: this one is {temporary}") from None
        os.replace(temporary, path)
        return
    temporary.unlink()


def file_hash(path: str | Path, algorithm: str | Callable[[], Any]) -> Any:
    """Return hashlib's object with the content of a file in it.

    Args:
        algorithm: its name, or what makes a new one.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm)


def write_text(path: Path, text: str) -> None:
    """Write a file as a whole or not at all.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    try:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise disk_error(path, error) from None


def disk_error(path: Path, error: OSError) -> UserError:
    """Return in words what went wrong while a file was written."""
    return UserError(f"cannot write {path}: {error.strerror}; what was written before is kept")
