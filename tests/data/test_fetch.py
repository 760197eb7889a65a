"""Downloads: resumed, verified, safely unpacked, and complete or absent."""

import io
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslrun.base.errors import UserError
from sslrun.data import fetch
from sslrun.data.fetch import _unpack, explained
from tests.helpers import CHANGES, CUT, Changes, Served, bounded, changed
from tests.published import cifar_files, md5, tar_of, write_all, zip_of

pytestmark = pytest.mark.usefixtures("_no_pauses")
FOLDER = "cifar-10-batches-py"
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def packed() -> bytes:
    return tar_of(cifar_files())


@pytest.fixture
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "PAUSE", 0.0)


def get(served: Served, data: bytes, name: str = "a.tar.gz", checksum: str | None = None) -> Path:
    return fetch.archive("data", FOLDER, f"{served.address}/{name}", checksum or md5(data))


def is_complete(folder: Path) -> bool:
    return all((folder.parent / name).read_bytes() == content for name, content in cifar_files().items())


@pytest.mark.parametrize("pack", [tar_of, zip_of])
def test_an_archive_is_downloaded_verified_unpacked_and_reused(served: Served, pack: Callable[[Files], bytes]) -> None:
    data = pack(cifar_files())
    (served.folder / "a.bin").write_bytes(data)
    folder = get(served, data, "a.bin")
    assert is_complete(folder)
    assert get(served, data, "a.bin") == folder
    assert fetch.archive(str(folder), FOLDER, "http://127.0.0.1:9/a.bin", md5(data)) == folder  # root=the folder itself
    assert served.requests == [("/a.bin", None)]
    assert {p.name for p in Path("data").iterdir()} == {"a.bin", FOLDER, ".fetch.lock"}


def test_python_before_3_11_4_unpacks_too(served: Served, packed: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in Debian 12: its tarfile has no filters."""
    extract = tarfile.TarFile.extract
    with_filter = {"filter": "fully_trusted"} if hasattr(tarfile, "data_filter") else {}

    def older(self: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
        extract(self, member, path, **with_filter)  # type: ignore[arg-type]

    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    monkeypatch.setattr(tarfile.TarFile, "extract", older)
    (served.folder / "a.tar.gz").write_bytes(packed)
    assert is_complete(get(served, packed))


def test_case_42_a_lost_connection_is_resumed(served: Served, packed: bytes) -> None:
    (served.folder / "a.tar.gz").write_bytes(packed)
    served.cut = [1000, 2000, 500]
    assert is_complete(get(served, packed))
    assert [r for _, r in served.requests] == [None, "bytes=1000-", "bytes=3000-", "bytes=3500-"]


def test_case_42_the_partial_download_of_a_killed_process_is_resumed(served: Served, packed: bytes) -> None:
    (served.folder / "a.tar.gz").write_bytes(packed)
    Path("data").mkdir()
    Path("data/a.tar.gz.part").write_bytes(packed[:5000])
    assert is_complete(get(served, packed))
    assert served.requests == [("/a.tar.gz", "bytes=5000-")]
    assert not Path("data/a.tar.gz.part").exists()


def test_case_42_without_range_support_the_download_restarts(served: Served, packed: bytes) -> None:
    (served.folder / "a.tar.gz").write_bytes(packed)
    served.ranges = False
    Path("data").mkdir()
    Path("data/a.tar.gz.part").write_bytes(packed[:5000])
    assert is_complete(get(served, packed))


@pytest.mark.parametrize("left", [b"something else", b"x" * 10_000_000])
def test_case_42_a_partial_download_of_another_file_is_not_used(served: Served, packed: bytes, left: bytes) -> None:
    (served.folder / "a.tar.gz").write_bytes(packed)
    Path("data").mkdir()
    Path("data/a.tar.gz.part").write_bytes(left)
    assert is_complete(get(served, packed))


def test_a_partial_download_that_is_already_complete_is_used(served: Served, packed: bytes) -> None:
    (served.folder / "a.tar.gz").write_bytes(packed)
    Path("data").mkdir()
    Path("data/a.tar.gz.part").write_bytes(packed)
    assert is_complete(get(served, packed))


def test_a_server_that_never_sends_data_is_given_up(served: Served, packed: bytes) -> None:
    (served.folder / "a.tar.gz").write_bytes(packed)
    served.cut = [0] * 50
    with pytest.raises(UserError, match="cannot be downloaded"):
        get(served, packed)
    assert len(served.requests) == fetch.ATTEMPTS


def test_a_url_that_no_longer_exists(served: Served) -> None:
    with pytest.raises(UserError, match=r"cannot be downloaded \(Not Found\): download http\S+/a.tar.gz elsewhere"):
        get(served, b"")
    assert len(served.requests) == 1


def test_case_41_a_wrong_checksum_is_refused_and_leaves_nothing(served: Served, packed: bytes) -> None:
    (served.folder / "a.tar.gz").write_bytes(packed)
    with pytest.raises(UserError, match="the download has a wrong checksum"):
        get(served, packed, checksum="0" * 32)
    assert {p.name for p in Path("data").iterdir()} == {".fetch.lock"}


def test_case_41_a_users_file_with_a_wrong_checksum_is_refused_and_kept(served: Served, packed: bytes) -> None:
    write_all({"a.tar.gz": b"mine"}, "data")
    with pytest.raises(UserError, match=r"data/a.tar.gz: wrong checksum .*: remove it; download http"):
        get(served, packed)
    assert Path("data/a.tar.gz").read_bytes() == b"mine"
    assert served.requests == []


def test_a_file_that_the_user_put_there_is_used(packed: bytes) -> None:
    write_all({"a.tar.gz": packed}, "data")
    assert is_complete(fetch.archive("data", FOLDER, "http://127.0.0.1:9/a.tar.gz", md5(packed)))


def refused(data: bytes) -> str:
    write_all({"a.bin": data}, "data")
    with pytest.raises(UserError) as caught:
        fetch.archive("data", FOLDER, "http://127.0.0.1:9/a.bin", md5(data))
    assert {p.name for p in Path("data").iterdir()} == {"a.bin", ".fetch.lock"}
    assert not [p for place in (".", "..", "/") for p in Path(place).glob("evil*")]
    return str(caught.value)


@pytest.mark.parametrize("pack", [tar_of, zip_of])
@pytest.mark.parametrize(
    "name", ["../evil.txt", "/evil.txt", f"{FOLDER}/../../evil.txt", "..\\evil.txt", "C:\\evil.txt"]
)
def test_case_40_archive_members_outside_their_folder(pack: Callable[[Files], bytes], name: str) -> None:
    assert "outside its folder" in refused(pack({**cifar_files(), name: b"evil"}))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_case_40_links_and_devices_in_a_tar(kind: bytes) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        info = tarfile.TarInfo(f"{FOLDER}/data_batch_1")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    assert "a link or a device" in refused(data.getvalue())


def test_case_40_links_in_a_zip() -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as zipped:
        link = zipfile.ZipInfo(f"{FOLDER}/data_batch_1")
        link.external_attr = 0o120777 << 16
        zipped.writestr(link, "/etc/passwd")
    assert "a link or a device" in refused(data.getvalue())


def test_a_damaged_archive_with_a_correct_checksum(packed: bytes) -> None:
    assert "cannot be unpacked" in refused(packed[:5000])
    assert "cannot be unpacked" in refused(b"not an archive")


def test_an_archive_without_the_expected_folder() -> None:
    assert f"contains no folder {FOLDER}" in refused(tar_of({"other/file": b"x"}))


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_a_fetch_killed_while_unpacking_leaves_no_partial_data_set(packed: bytes) -> None:
    files = {f"{FOLDER}/file {i}": b"x" for i in range(3000)} | cifar_files()
    data = tar_of(files)
    write_all({"a.bin": data}, "data")
    code = (
        f"from sslrun.data import fetch; fetch.archive('data', {FOLDER!r}, 'http://127.0.0.1:9/a.bin', {md5(data)!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    while process.poll() is None and not list(Path("data").glob(".unpacking-*/*/file 5")):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(Path("data").glob(".unpacking-*"))  # killed while unpacking
    assert not Path("data", FOLDER).exists()
    assert len(list(fetch.archive("data", FOLDER, "http://127.0.0.1:9/a.bin", md5(data)).iterdir())) == len(files)
    assert not list(Path("data").glob(".unpacking-*"))


def test_two_processes_download_only_once(served: Served, packed: bytes) -> None:
    (served.folder / "a.tar.gz").write_bytes(packed)
    wanted = ("data", FOLDER, f"{served.address}/a.tar.gz", md5(packed))
    code = f"from sslrun.data import fetch; fetch.archive(*{wanted!r})"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [p.wait() for p in processes] == [0, 0, 0]
    assert len(served.requests) == 1
    assert is_complete(Path("data", FOLDER))


def test_a_gzipped_file(served: Served) -> None:
    import gzip

    data = gzip.compress(b"hello")
    (served.folder / "a.gz").write_bytes(data)
    for _ in range(2):
        fetch.gzipped(Path("data"), f"{served.address}/", {"a.gz": md5(data)})
        assert Path("data/a").read_bytes() == b"hello"
    assert len(served.requests) == 1


def test_an_archive_in_a_root_with_the_folders_name_is_used(served: Served, packed: bytes) -> None:
    root = Path("x", FOLDER)
    with pytest.raises(UserError, match=f"is not at {root}/a.tar.gz and cannot be downloaded"):
        fetch.archive(str(root), FOLDER, "http://127.0.0.1:9/a.tar.gz", md5(packed))
    write_all({"a.tar.gz": packed}, root)
    assert is_complete(fetch.archive(str(root), FOLDER, "http://127.0.0.1:9/a.tar.gz", md5(packed)))


def test_a_busy_server_is_retried(served: Served, packed: bytes) -> None:
    (served.folder / "a.tar.gz").write_bytes(packed)
    served.busy = 2
    assert is_complete(get(served, packed))
    assert len(served.requests) == 3


def test_a_partial_download_is_kept_and_reported(served: Served, packed: bytes) -> None:
    (served.folder / "a.tar.gz").write_bytes(packed)
    served.cut = [3000, *[0] * 50]
    with pytest.raises(UserError, match="the partial download is kept, and the same command resumes it"):
        get(served, packed)
    assert Path("data/a.tar.gz.part").stat().st_size == 3000


def test_without_a_terminal_progress_is_plain_lines_with_rate_and_time_left(
    served: Served, packed: bytes, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from sslrun.base import console

    console.start_logging()
    monkeypatch.setattr(console, "PLAIN_EVERY", 0.0)
    monkeypatch.setattr(fetch, "BLOCK", 4096)
    (served.folder / "a.tar.gz").write_bytes(packed)
    get(served, packed)
    answer = capfd.readouterr().err
    assert f"Downloading {served.address}/a.tar.gz" in answer
    assert re.search(r"a\.tar\.gz \d+/\d+, [\d,]+ MB/s, [\d.]+ s left", answer)
    assert re.search(r"unpacking 8, [\d,]+ files/s", answer)


@pytest.mark.parametrize("url", ["example.com/a.tar.gz", "http://127.0.0.1/ü/a.tar.gz"])
def test_an_invalid_url(url: str, packed: bytes) -> None:
    with pytest.raises(UserError, match="cannot be downloaded"):
        fetch.archive("data", FOLDER, url, md5(packed))


def any_tar(names: list[str], kind: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = (3 if kind == tarfile.REGTYPE else 0), kind, "../../outside"
            tar.addfile(info, io.BytesIO(b"abc"))
    return out.getvalue()


def any_zip(names: list[str], kind: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as zipped:
        for name in names:
            info = zipfile.ZipInfo(name)
            if kind == tarfile.SYMTYPE:
                info.external_attr = 0o120777 << 16
            zipped.writestr(info, b"abc")
    return out.getvalue()


PARTS = st.sampled_from(["set", "..", "a", "/", "//", "\\", "C:", "~", ".", "é", "con", " "])
NAMES = st.lists(PARTS, min_size=1, max_size=4).map("/".join)


@pytest.mark.parametrize("pack", [any_tar, any_zip], ids=["tar_of", "zip_of"])
def test_any_archive_stays_in_its_folder(pack: Callable[[list[str], bytes], bytes]) -> None:
    @bounded(200)
    @given(
        st.lists(NAMES, min_size=1, max_size=3),
        st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE]),
        CHANGES,
        CUT,
    )
    def check(names: list[str], kind: bytes, changes: Changes, part: float | None) -> None:
        with tempfile.TemporaryDirectory(dir=".") as top:
            inside = Path(top, "data")
            inside.mkdir()
            packed = inside / "x.bin"
            packed.write_bytes(changed(pack(names, kind), changes, part))
            try:
                with explained("set", "http://127.0.0.1:9/x.bin", packed):
                    _unpack(packed, inside / "set")
            except UserError as error:
                assert "x.bin" in str(error)
            assert [p.name for p in Path(top).iterdir()] == ["data"]
            assert not any(p.is_symlink() for p in Path(top).rglob("*"))

    check()
