"""Download, verify and unpack a published data set, completely or not at all."""

import errno
import gzip
import http.client
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from sslrun.base.console import log, progress
from sslrun.base.errors import UserError
from sslrun.base.files import file_hash, replacing
from sslrun.base.locks import alone
from sslrun.base.version import __version__

BLOCK = 1 << 20
ATTEMPTS = 5  # consecutive attempts that receive no data
PAUSE = 0.5  # seconds before the second attempt, doubled for each further one
TIMEOUT = 30  # seconds without data
CONNECTION_ERRORS = (http.client.HTTPException, ConnectionError, TimeoutError)


class _WrongChecksum(Exception):
    pass


def archive(root: str, name: str, url: str, md5: str) -> Path:
    """Return the folder `root/name`; download and unpack the archive at `url` if it does not exist.

    An archive that the user has put into `root` is used; `root` may also be the unpacked folder itself.

    Raises:
        UserError: no network, a wrong checksum, an unsafe or damaged archive, or no disk space.
    """
    folder = Path(root, name)
    if folder.is_dir():
        return folder
    packed = Path(root, url.rsplit("/", 1)[-1])
    if Path(root).name == name and _has_other_files(Path(root), packed.name):
        return Path(root)
    with _locked(packed.parent, name, url, packed):
        if not folder.is_dir():  # unless another process has just created it
            _ensure(packed, url, md5)
            _unpack(packed, folder)
    return folder


def file(path: Path, url: str, checksum: str, more: Sequence[str] = ()) -> Path:
    """Return a file's path; download the file if it does not exist.

    Args:
        checksum: MD5, or `sha256:` and its first digits.
        more: names of further files that are missing in the same folder, for the message.

    Raises:
        UserError: no network, a wrong checksum, or no disk space.
    """
    if not path.is_file():
        with _locked(path.parent, path.name, url, path, more):
            _ensure(path, url, checksum)
    return path


def gzipped(folder: Path, url: str, files: dict[str, str]) -> None:
    """Download gzipped files and unpack them into a folder; existing files are kept.

    Args:
        url: folder of the files, with a slash at its end.
        files: names, such as `name.gz` -> MD5.

    Raises:
        UserError: no network, a wrong checksum, a damaged file, or no disk space.
    """
    missing = [name for name in files if not (folder / name.removesuffix(".gz")).is_file()]
    for i, name in enumerate(missing):
        path = folder / name.removesuffix(".gz")
        more = [n for n in missing[i + 1 :] if not (folder / n).is_file()]
        with _locked(folder, name, url + name, folder / name, more):
            _ensure(folder / name, url + name, files[name])
            with replacing(path) as partial, gzip.open(folder / name) as packed, partial.open("wb") as out:
                shutil.copyfileobj(packed, out, BLOCK)


def _has_other_files(folder: Path, packed: str) -> bool:
    """Return whether a folder has any visible files other than an archive or its partial download."""
    return folder.is_dir() and any(not p.name.startswith((".", packed)) for p in folder.iterdir())


@contextmanager
def _locked(folder: Path, name: str, url: str, path: Path, more: Sequence[str] = ()) -> Iterator[None]:
    """Create and lock a folder for a download; report failures in one line."""
    with explained(name, url, path, more):
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder / ".fetch.lock", f"downloading into {folder}"):
            yield


@contextmanager
def explained(name: str, url: str, path: Path | str, more: Sequence[str] = ()) -> Iterator[None]:
    """Report failures of downloading and unpacking in one line that says what to do."""
    try:
        yield
    except (urllib.error.URLError, *CONNECTION_ERRORS, RuntimeError, ValueError) as error:
        reason = str(getattr(error, "reason", error)) or type(error).__name__
        others = f", and also {', '.join(more)}" if more else ""
        is_partial = Path(f"{path}.part").is_file()
        hint = "; the partial download is kept, and the same command resumes it" if is_partial else ""
        raise UserError(
            f"{name} is not at {path} and cannot be downloaded ({reason.splitlines()[0]}): "
            f"download {url} elsewhere and put it there{others}{hint}"
        ) from None
    except _WrongChecksum as error:
        raise UserError(f"{path}: {error}; download {url} again") from None
    except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path} cannot be unpacked ({error}): remove it and download {url} again") from None
    except OSError as error:
        raise UserError(f"{name} cannot be written to {path}: {error.strerror or error}") from None


def _ensure(path: Path, url: str, checksum: str) -> None:
    """Download a file unless it exists, and verify its checksum."""
    if path.is_file():
        if wrong := _wrong(path, checksum):
            raise _WrongChecksum(f"wrong checksum ({wrong}): remove it")
        return
    partial = path.with_name(path.name + ".part")
    resumed = partial.is_file() and partial.stat().st_size > 0
    _download(url, partial)
    if _wrong(partial, checksum) and resumed:  # the partial file may be of another version
        log.warning("The partial download does not match the file; downloading it again from the start.")
        partial.unlink()
        _download(url, partial)
    if wrong := _wrong(partial, checksum):
        partial.unlink()
        raise _WrongChecksum(f"the download has a wrong checksum ({wrong}) and was removed")
    os.replace(partial, path)


def _wrong(path: Path, checksum: str) -> str | None:
    """Return what differs between a file's checksum and the expected one; None if it is right."""
    algorithm, _, expected = checksum.rpartition(":")
    algorithm = algorithm or "md5"
    found = file_hash(path, algorithm).hexdigest()[: len(expected)]
    return None if found == expected else f"{algorithm.upper()} {found}, expected {expected}"


def _download(url: str, partial: Path) -> None:
    """Download to a file, resuming a partial download; what was received is kept if an attempt fails."""
    log.info("Downloading %s", url)
    attempts = 0
    started = False
    while True:
        before = partial.stat().st_size if partial.is_file() else 0
        try:
            _resume_download(url, partial, before)
            return
        except (urllib.error.URLError, *CONNECTION_ERRORS) as error:
            code = error.code if isinstance(error, urllib.error.HTTPError) else None
            if code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return  # the file is complete; its checksum is verified later
            received = partial.is_file() and partial.stat().st_size > before
            started = started or received
            attempts = 1 if received else attempts + 1
            permanent = code is not None and code < http.HTTPStatus.INTERNAL_SERVER_ERROR
            never_connected = isinstance(error, urllib.error.URLError) and code is None and not started
            if permanent or never_connected or attempts >= ATTEMPTS:
                raise
            log.warning("The connection was lost (%s); resuming the download.", error or type(error).__name__)
            time.sleep(PAUSE * 2 ** (attempts - 1))


def _resume_download(url: str, partial: Path, offset: int) -> None:
    headers = {"User-Agent": f"sslrun/{__version__}", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            offset = 0  # this server does not support resuming
        length = response.headers.get("Content-Length")
        size = offset + int(length) if length else 0
        if size and shutil.disk_usage(partial.parent).free < size - offset:
            raise OSError(errno.ENOSPC, f"no space left, {size / 1e6:.0f} MB are needed")
        with partial.open("ab" if offset else "wb") as out, progress(partial.stem, size, "B", offset) as advance:
            while block := _read(response):
                out.write(block)
                advance(len(block))
    if size and partial.stat().st_size < size:
        raise ConnectionError(f"received {partial.stat().st_size} of {size} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(BLOCK)
    except OSError as error:  # a network error, not a disk error
        raise ConnectionError(str(error)) from None


def _unpack(packed: Path, folder: Path) -> None:
    """Unpack into a temporary folder, then rename it, so that the data set is complete or absent."""
    for leftover in folder.parent.glob(f".unpacking-{folder.name}-*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    prefix = f".unpacking-{folder.name}-"
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=prefix, ignore_cleanup_errors=True) as inside:
        log.info("Unpacking %s", packed)
        if zipfile.is_zipfile(packed):
            _unzip(packed, inside)
        else:
            _untar(packed, inside)
        if not Path(inside, folder.name).is_dir():
            raise UserError(f"{packed} contains no folder {folder.name}: is it the right archive?")
        os.replace(Path(inside, folder.name), folder)


def _unzip(packed: Path, inside: str) -> None:
    with zipfile.ZipFile(packed) as zipped, progress("unpacking", len(zipped.infolist()), "files") as advance:
        for member in zipped.infolist():
            _check_member(packed, member.filename, link=stat.S_ISLNK(member.external_attr >> 16))
        for member in zipped.infolist():
            try:
                zipped.extract(member, inside)
            except (RuntimeError, NotImplementedError) as error:  # encrypted, or an unsupported compression method
                raise zipfile.BadZipFile(str(error)) from None
            advance(1)


def _untar(packed: Path, inside: str) -> None:
    # Python before 3.11.4, as in Debian 12, has no filter: there, names and kinds of members are all that is checked.
    safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(packed) as tarred, progress("unpacking", 0, "files") as advance:
        for member in tarred:
            _check_member(packed, member.name, link=not (member.isfile() or member.isdir()))
            member.mode &= 0o755  # nobody else may write, and nothing runs as another user
            tarred.extract(member, inside, **safely)
            advance(1)


def _check_member(packed: Path, name: str, link: bool) -> None:
    """Refuse a member of an archive that is a link or a device, or would be unpacked outside the folder."""
    unsafe = [p for p in (PurePosixPath(name), PureWindowsPath(name)) if p.anchor or ".." in p.parts]
    if unsafe or link:
        what = "a link or a device" if link else "outside its folder"
        raise UserError(f"{packed} was not unpacked: its member {name!r} is {what}, which is not allowed")
