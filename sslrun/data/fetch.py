"""Fetching a published data set: downloaded, verified, unpacked, and then there as a whole or not at all."""

import hashlib
import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sslrun.config import UserError
from sslrun.console import log, progress

BLOCK = 1 << 20


def archive(root: str, name: str, url: str, md5: str) -> Path:
    """Return the folder `root/name`, fetching and unpacking the archive at `url` if it is not there.

    An archive that was put into `root` by hand is used.

    Raises:
        UserError: no network, a wrong checksum, an unsafe or damaged archive, no space.
    """
    folder = Path(root, name)
    if folder.is_dir():
        return folder
    packed = Path(root, url.rsplit("/", 1)[-1])
    with explained(name, url, packed):
        if not packed.is_file():
            _download(url, packed)
        found = _md5(packed)
        if found != md5:
            raise UserError(f"{packed}: wrong checksum (md5 {found}, expected {md5}): remove it and fetch {url} again")
        _unpack(packed, folder)
    return folder


@contextmanager
def explained(name: str, url: str, place: Path | str) -> Iterator[None]:
    """Turn failures of fetching into one line that says what to do."""
    try:
        yield
    except (urllib.error.URLError, ConnectionError, TimeoutError, RuntimeError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"{name} is not at {place} and cannot be downloaded ({str(reason).splitlines()[0]}): "
            f"fetch {url} elsewhere and put it there"
        ) from None
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{place} cannot be unpacked ({error}): remove it and fetch {url} again") from None
    except OSError as error:
        raise UserError(f"{name} could not be put at {place}: {error}") from None


def _download(url: str, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    part = to.with_name(to.name + ".part")
    log.info("Downloading %s", url)
    with urllib.request.urlopen(url, timeout=30) as answer, part.open("wb") as file:
        size = int(answer.headers.get("Content-Length") or 0)
        with progress(to.name, size, "B") as advance:
            while block := answer.read(BLOCK):
                file.write(block)
                advance(len(block))
    if size and part.stat().st_size != size:
        part.unlink()
        raise ConnectionError(f"the connection ended after {part.name} was fetched in part")
    os.replace(part, to)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _unpack(packed: Path, folder: Path) -> None:
    """Unpack into a folder of its own, then rename: the data set is there whole or not there."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpacking-") as inside:
        log.info("Unpacking %s", packed)
        if zipfile.is_zipfile(packed):
            with zipfile.ZipFile(packed) as zipped:
                zipped.extractall(inside)
        else:
            with tarfile.open(packed) as tarred:
                tarred.extractall(inside, filter="data")
        if not Path(inside, folder.name).is_dir():
            raise UserError(f"{packed} holds no folder {folder.name}: is it the right archive?")
        shutil.move(Path(inside, folder.name), folder)
