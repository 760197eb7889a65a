"""Fetching a published data set: downloaded, verified, unpacked, and then there as a whole or not at all."""

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

from sslrun.base.console import log, progress
from sslrun.base.errors import UserError
from sslrun.base.files import file_hash, replacing
from sslrun.base.locks import alone
from sslrun.base.version import __version__

BLOCK = 1 << 20
TRIES = 5  # in a row without a byte
PAUSE = 0.5  # seconds before the second try, then twice as long, and so on
TIMEOUT = 30  # seconds of silence
BROKEN = (http.client.HTTPException, ConnectionError, TimeoutError)


class _WrongChecksum(Exception):
    pass


def archive(root: str, name: str, url: str, md5: str) -> Path:
    """Return the folder `root/name`, fetching and unpacking the archive at `url` if it is not there.

    An archive that was put into `root` by hand is used; `root` may be the folder itself.

    Raises:
        UserError: no network, a wrong checksum, an unsafe or damaged archive, no space.
    """
    folder = Path(root, name)
    if folder.is_dir():
        return folder
    packed = Path(root, url.rsplit("/", 1)[-1])
    if Path(root).name == name and _holds_more_than(Path(root), packed.name):
        return Path(root)
    with _in(packed.parent, name, url, packed):
        if not folder.is_dir():  # no other process has made it meanwhile
            _have(packed, url, md5)
            _unpack(packed, folder)
    return folder


def file(place: Path, url: str, md5: str, more: Sequence[str] = ()) -> Path:
    """Return a file at its place, fetching it if it is not there.

    Args:
        more: names of other files that are wanted from the same folder, for the message.

    Raises:
        UserError: no network, a wrong checksum, no space.
    """
    if not place.is_file():
        with _in(place.parent, place.name, url, place, more):
            _have(place, url, md5)
    return place


def gzipped(folder: Path, url: str, files: dict[str, str]) -> None:
    """Have some files in a folder of which `name.gz` is published in the folder `url`, fetched and unpacked.

    Args:
        files: name -> md5.

    Raises:
        UserError: no network, a wrong checksum, a damaged file, no space.
    """
    missing = [name for name in files if not (folder / name.removesuffix(".gz")).is_file()]
    for i, name in enumerate(missing):
        place = folder / name.removesuffix(".gz")
        more = [n for n in missing[i + 1 :] if not (folder / n).is_file()]
        with _in(folder, name, url + name, folder / name, more):
            _have(folder / name, url + name, files[name])
            with replacing(place) as partial, gzip.open(folder / name) as packed, partial.open("wb") as out:
                shutil.copyfileobj(packed, out, BLOCK)


def _holds_more_than(folder: Path, packed: str) -> bool:
    """Tell whether a folder holds anything but an archive, or a part of it, that was put there."""
    return folder.is_dir() and any(not p.name.startswith((".", packed)) for p in folder.iterdir())


@contextmanager
def _in(folder: Path, name: str, url: str, place: Path, more: Sequence[str] = ()) -> Iterator[None]:
    """Work in a folder, alone, with failures explained."""
    with explained(name, url, place, more):
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder / ".fetch.lock", f"fetching into {folder}"):
            yield


@contextmanager
def explained(name: str, url: str, place: Path | str, more: Sequence[str] = ()) -> Iterator[None]:
    """Turn failures of fetching into one line that says what to do."""
    try:
        yield
    except (urllib.error.URLError, *BROKEN, RuntimeError, ValueError) as error:
        reason = str(getattr(error, "reason", error)) or type(error).__name__
        others = f", likewise {', '.join(more)}" if more else ""
        hint = "; what has arrived is kept, and the same command goes on" if Path(f"{place}.part").is_file() else ""
        raise UserError(
            f"{name} is not at {place} and cannot be downloaded ({reason.splitlines()[0]}): "
            f"fetch {url} elsewhere and put it there{others}{hint}"
        ) from None
    except _WrongChecksum as error:
        raise UserError(f"{place}: {error}; fetch {url} again") from None
    except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{place} cannot be unpacked ({error}): remove it and fetch {url} again") from None
    except OSError as error:
        raise UserError(f"{name} could not be put at {place}: {error.strerror or error}") from None


def _have(place: Path, url: str, md5: str) -> None:
    """Download a file, unless it is there, and hold it against its checksum."""
    if place.is_file():
        md5_found = file_hash(place, "md5").hexdigest()
        if md5_found != md5:
            raise _WrongChecksum(f"wrong checksum (md5 {md5_found}, expected {md5}): remove it")
        return
    partial = place.with_name(place.name + ".part")
    resumed = partial.is_file() and partial.stat().st_size > 0
    _download(url, partial)
    md5_found = file_hash(partial, "md5").hexdigest()
    if md5_found != md5 and resumed:  # the first half was of another file
        log.warning("What was left of an earlier download does not fit; starting anew.")
        partial.unlink()
        _download(url, partial)
        md5_found = file_hash(partial, "md5").hexdigest()
    if md5_found != md5:
        partial.unlink()
        raise _WrongChecksum(f"the download has a wrong checksum (md5 {md5_found}, expected {md5}) and was removed")
    os.replace(partial, place)


def _download(url: str, partial: Path) -> None:
    """Download to a file, going on where an earlier try ended; what has arrived is kept, whatever happens."""
    log.info("Downloading %s", url)
    tries = 0
    began = False
    while True:
        before = partial.stat().st_size if partial.is_file() else 0
        try:
            _resume_download(url, partial, before)
            return
        except (urllib.error.URLError, *BROKEN) as error:
            code = error.code if isinstance(error, urllib.error.HTTPError) else None
            if code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return  # it is there to the end; the checksum tells whether it is right
            arrived = partial.is_file() and partial.stat().st_size > before
            began = began or arrived
            tries = 1 if arrived else tries + 1
            hopeless = code is not None and code < http.HTTPStatus.INTERNAL_SERVER_ERROR
            if hopeless or tries >= TRIES or (isinstance(error, urllib.error.URLError) and code is None and not began):
                raise
            log.warning("The connection broke off (%s); going on.", error or type(error).__name__)
            time.sleep(PAUSE * 2 ** (tries - 1))


def _resume_download(url: str, partial: Path, offset: int) -> None:
    headers = {"User-Agent": f"sslrun/{__version__}", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as answer:
        if answer.status != http.HTTPStatus.PARTIAL_CONTENT:
            offset = 0  # this server always begins at the beginning
        length = answer.headers.get("Content-Length")
        size = offset + int(length) if length else 0
        if size and shutil.disk_usage(partial.parent).free < size - offset:
            raise OSError(errno.ENOSPC, f"no space left: {size / 1e6:.0f} MB are needed")
        with partial.open("ab" if offset else "wb") as out, progress(partial.stem, size, "B", offset) as advance:
            while block := _read(answer):
                out.write(block)
                advance(len(block))
    if size and partial.stat().st_size < size:
        raise ConnectionError(f"{partial.stat().st_size} of {size} bytes arrived")


def _read(answer: http.client.HTTPResponse) -> bytes:
    try:
        return answer.read1(BLOCK)
    except OSError as error:  # of the network, not of the disk
        raise ConnectionError(str(error)) from None


def _unpack(packed: Path, folder: Path) -> None:
    """Unpack into a folder of its own, then rename: the data set is there as a whole or not there."""
    for left in folder.parent.glob(f".unpacking-{folder.name}-*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    prefix = f".unpacking-{folder.name}-"
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=prefix, ignore_cleanup_errors=True) as inside:
        log.info("Unpacking %s", packed)
        if zipfile.is_zipfile(packed):
            _unzip(packed, inside)
        else:
            _untar(packed, inside)
        if not Path(inside, folder.name).is_dir():
            raise UserError(f"{packed} holds no folder {folder.name}: is it the right archive?")
        os.replace(Path(inside, folder.name), folder)


def _unzip(packed: Path, inside: str) -> None:
    with zipfile.ZipFile(packed) as zipped, progress("unpacking", len(zipped.infolist()), "files") as advance:
        for member in zipped.infolist():
            _judge(packed, member.filename, link=stat.S_ISLNK(member.external_attr >> 16))
        for member in zipped.infolist():
            try:
                zipped.extract(member, inside)
            except (RuntimeError, NotImplementedError) as error:  # encrypted, or packed in a way of its own
                raise zipfile.BadZipFile(str(error)) from None
            advance(1)


def _untar(packed: Path, inside: str) -> None:
    with tarfile.open(packed) as tarred, progress("unpacking", 0, "files") as advance:
        for member in tarred:
            _judge(packed, member.name, link=not (member.isfile() or member.isdir()))
            tarred.extract(member, inside, filter="data")
            advance(1)


def _judge(packed: Path, name: str, link: bool) -> None:
    """Refuse a member of an archive that would lie, or point, outside the folder that it is unpacked into."""
    unsafe = [p for p in (PurePosixPath(name), PureWindowsPath(name)) if p.anchor or ".." in p.parts]
    if unsafe or link:
        what = "a link or a device" if link else "outside its folder"
        raise UserError(f"{packed} was not unpacked: its member {name!r} is {what}, which no picture is")
