"""Atomic writes, and new files and folders that overwrite nothing."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sslrun.base.errors import UserError


def new_file(key: str, path: Path) -> Path:
    """Check that a file can be created, before any work is done; its folder is created.

    Raises:
        UserError: it exists, or its folder cannot be created.
    """
    refuse_file(key, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{key}={path}: {path.parent} cannot be created: {error.strerror}") from None
    return path


def refuse_file(key: str, path: Path) -> None:
    """Let nothing that is there be overwritten.

    Raises:
        UserError: the file is there already.
    """
    if os.path.lexists(path):
        raise UserError(f"{key}={path} already exists: choose a new file")


def refuse_folder(key: str, path: Path) -> None:
    """Let nothing be mixed with what is there.

    Raises:
        UserError: the folder is there already and not empty.
    """
    if os.path.lexists(path) and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{key}={path} already exists and is not empty: choose a new folder")


def new_folder(key: str, path: Path) -> Path:
    """Create a folder, or use an empty one.

    Raises:
        UserError: it exists and is not empty, or it cannot be created.
    """
    refuse_folder(key, path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{key}={path}: cannot be created: {error.strerror}") from None
    return path


@contextmanager
def replacing(path: Path, before: Path | None = None) -> Iterator[Path]:
    """Yield the path of a temporary file, which is flushed to disk and replaces `path` when the context ends.

    On an error `path` is unchanged and the temporary file is removed.

    Args:
        before: path to which the previous file is moved; None discards it.

    Raises:
        OSError: the file cannot be written.
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
        temporary.unlink(missing_ok=True)  # left over after an error or a signal


@contextmanager
def creating(path: Path, key: str, suffix: str) -> Iterator[Path]:
    """Yield the path of a temporary file, which is renamed to `path` when the context ends, unless that exists by then.

    Args:
        key: config key, for the message.
        suffix: suffix of the temporary file.

    Raises:
        UserError: `path` was created in the meantime.
    """
    temporary = path.with_name(f".part_{os.getpid()}{suffix}")
    try:
        yield temporary
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    put_in_place(temporary, path, key)


def put_in_place(temporary: Path, path: Path, key: str) -> None:
    """Rename a complete file to `path` without overwriting.

    Raises:
        UserError: `path` exists; the file keeps its temporary name.
    """
    try:
        os.link(temporary, path)  # fails if `path` exists, unlike a rename
    except FileExistsError:
        raise UserError(f"{key}={path} was created meanwhile; the result is in {temporary}") from None
    except OSError:  # a file system without links
        if os.path.lexists(path):
            raise UserError(f"{key}={path} was created meanwhile; the result is in {temporary}") from None
        os.replace(temporary, path)
        return
    temporary.unlink()


def file_hash(path: str | Path, algorithm: str | Callable[[], Any]) -> Any:
    """Return a hashlib object updated with the content of a file.

    Args:
        algorithm: a name, or a constructor.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    Raises:
        UserError: the disk is full, or the folder is not writable.
    """
    try:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise disk_error(path, error) from None


def disk_error(path: Path, error: OSError) -> UserError:
    """Return a `UserError` for an error while writing a file."""
    return UserError(f"cannot write {path}: {error.strerror}; files written before are kept")
