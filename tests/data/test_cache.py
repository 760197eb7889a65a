"""Decoded images are cached: decoded once, in order, safely."""

import errno
import json
import mmap
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sslrun.base.console import start_logging
from sslrun.base.errors import UserError
from sslrun.data import cache, workers
from sslrun.data import decode as decoding
from sslrun.data.cache import decode_all, resize_all, resized
from sslrun.data.decode import VERSION, decode, read
from sslrun.data.tree import find_images
from tests.helpers import ended, spawn, wait_for


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of the files that this process decodes."""
    calls: list[str] = []

    def counted(path: str, *settings: Any) -> tuple[np.ndarray, float]:
        calls.append(path)
        return read(path, *settings)

    monkeypatch.setattr(decoding, "read", counted)
    return calls


def test_images_are_decoded_in_order_and_only_once(photos: Path, decoded: list[str]) -> None:
    files = find_images(photos)
    first = decode_all(files, 16, "crop", "rgb")
    assert sorted(decoded) == sorted(files)
    assert all((first.array[i] == decode(files[i], 16)).all() for i in range(len(files)))
    decoded.clear()
    again = decode_all(files, 16, "crop", "rgb")
    assert decoded == []
    assert isinstance(again.array, np.memmap)
    assert (again.array == first.array).all()
    assert (again.digests == first.digests).all()


def test_results_do_not_depend_on_the_block_size(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = find_images(photos)
    first = decode_all(files, 16, "crop", "rgb")
    monkeypatch.setattr(cache, "CHUNK", 7 * 16 * 16 * 3)
    monkeypatch.setenv("SSLRUN_CACHE", "another")
    second = decode_all(files, 16, "crop", "rgb")
    assert (first.array == second.array).all()
    assert (first.digests == second.digests).all()


def test_case_49_other_settings_files_or_versions_are_decoded_again(
    photos: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = find_images(photos / "flower")
    decode_all(files, 16, "crop", "rgb")
    for changed in ((files, 17, "crop", "rgb"), (files, 16, "squash", "rgb"), (files, 16, "crop", "gray")):
        decoded.clear()
        decode_all(*changed)
        assert len(decoded) == 30
    decoded.clear()
    decode_all(files[1:], 16, "crop", "rgb")
    assert len(decoded) == 29
    decoded.clear()
    monkeypatch.setattr(cache, "VERSION", VERSION + "1")
    decode_all(files, 16, "crop", "rgb")
    assert len(decoded) == 30


@pytest.mark.parametrize("change", ["content", "time"])
def test_case_49_a_changed_file_is_decoded_again(photos: Path, decoded: list[str], change: str) -> None:
    data = (photos / "flower/flower 00.jpg").read_bytes()
    Path("x.jpg").write_bytes(data)
    decode_all(["x.jpg"], 16, "crop", "rgb")
    before = os.stat("x.jpg")
    if change == "content":
        Path("x.jpg").write_bytes(data + b"\0")  # different size, same modification time
        os.utime("x.jpg", ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        os.utime("x.jpg", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    decode_all(["x.jpg"], 16, "crop", "rgb")
    assert len(decoded) == 2


@pytest.mark.parametrize("name", ["images.npy", "digests.npy", "bad.json", "outside.json"])
@pytest.mark.parametrize("how", ["cut", "missing", "empty", "other"])
def test_case_49_a_damaged_cache_entry_is_created_again(photos: Path, decoded: list[str], name: str, how: str) -> None:
    files = find_images(photos)[:5]
    first = decode_all(files, 16, "crop", "rgb").array.copy()
    (folder,) = [p for p in cache.cache_folder().iterdir() if p.is_dir()]
    if how == "missing":
        (folder / name).unlink()
    elif how == "other":
        (folder / name).write_bytes(b"[1]" if name == "bad.json" else b"something else")
    else:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2] if how == "cut" else b"")
    decoded.clear()
    assert (decode_all(files, 16, "crop", "rgb").array == first).all()
    assert len(decoded) == 5
    decoded.clear()
    decode_all(files, 16, "crop", "rgb")
    assert decoded == []


def test_only_unreadable_files() -> None:
    Path("a.jpg").write_text("x")
    result = decode_all(["a.jpg"], 16, "crop", "rgb")
    assert len(result.images()) == 0
    assert result.bad == {0: "not an image in a supported format"}


def test_without_a_writable_cache_images_are_decoded_in_memory(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").write_text("in the way")
    monkeypatch.setenv("SSLRUN_CACHE", "file")
    files = find_images(photos)[:3]
    result = decode_all(files, 16, "crop", "rgb")
    assert (result.array[2] == decode(files[2], 16)).all()
    assert len({d.tobytes() for d in result.digests}) == 3


def test_on_a_full_disk_images_are_decoded_in_memory_and_no_partial_entry_is_left(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if os.geteuid() or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("needs the right to mount a small disk")
    code = (
        "import subprocess, sys, os\n"
        "subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=66m', 'none', 'small'], check=True)\n"
        "from sslrun.base.console import start_logging\n"
        "from sslrun.data.cache import decode_all\n"
        "from sslrun.data.tree import find_images\n"
        "start_logging()\n"
        f"files = find_images({str(photos)!r})\n"
        "for size in (900, 8):\n"  # the first takes 145 MB
        "    assert len(decode_all(files, size, 'crop', 'rgb').array) == 60\n"
        "    kept = [n for n in os.listdir('small/decoded') if not n.endswith('.lock')]\n"
        "    print(size, len(kept), file=sys.stderr)\n"
    )
    Path("small").mkdir()
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", code],
        env={**os.environ, "SSLRUN_CACHE": "small"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    large, small = done.stderr.split("900 0\n")
    assert "Cannot cache decoded images" in large
    assert "Cannot cache decoded images" not in small
    assert small.endswith("8 1\n")


def test_a_failed_write_leaves_no_partial_cache_entry(
    photos: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[str]
) -> None:
    calls = []

    def full(array: np.ndarray) -> np.ndarray:
        calls.append(len(array))
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return digests(array)

    digests = cache.digests
    monkeypatch.setattr(cache, "CHUNK", 1)  # one file at a time
    monkeypatch.setattr(cache, "digests", full)
    files = find_images(photos)[:20]
    assert len(decode_all(files, 16, "crop", "rgb").array) == 20
    assert [p for p in cache.cache_folder().iterdir() if p.suffix != ".lock"] == []


def decode_slowly(folder: str) -> None:
    """Be a process that decodes, and notes each file."""

    def slow(path: str, *settings: Any) -> tuple[np.ndarray, float]:
        with open("calls", "a") as file:
            file.write(path + "\n")
        time.sleep(0.02)
        return read(path, *settings)

    start_logging()
    decoding.read = slow  # type: ignore[assignment]
    print(decode_all(find_images(folder), 16, "crop", "rgb").array.sum())


def test_case_48_concurrent_processes_decode_only_once(photos: Path) -> None:
    children = [spawn(decode_slowly, str(photos), out=f"out{i}", err="err") for i in range(3)]
    assert [ended(c) for c in children] == [0, 0, 0]
    assert len({Path(f"out{i}").read_text() for i in range(3)}) == 1
    assert len(Path("calls").read_text().splitlines()) == 60
    assert "Waiting for another process that is decoding the same images" in Path("err").read_text()


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_case_48_a_process_killed_while_decoding_leaves_no_usable_entry(photos: Path) -> None:
    child = spawn(decode_slowly, str(photos))
    wait_for(child, lambda: Path("calls").exists() and len(Path("calls").read_text().splitlines()) >= 5)
    child.kill()
    assert ended(child) == -signal.SIGKILL
    Path("calls").unlink()
    assert ended(spawn(decode_slowly, str(photos))) == 0
    assert len(Path("calls").read_text().splitlines()) == 60
    assert not list(cache.cache_folder().glob("*.part"))


def test_a_memory_mapped_array_is_resized_once_and_equals_one_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(0, 255, (50, 3, 12, 12), dtype=np.uint8)
    array.tofile("array.bin")
    mapped = np.memmap("array.bin", dtype=np.uint8, mode="r").reshape(-1, 3, 12, 12).transpose(0, 2, 3, 1)
    assert isinstance(mapped, np.memmap)
    first = resize_all(mapped, 20, "rgb")
    assert (first.array == resized(array.transpose(0, 2, 3, 1), 20, "rgb")).all()
    assert (resize_all(mapped, 12, "rgb").array == array.transpose(0, 2, 3, 1)).all()

    def never(*_: object) -> None:
        raise AssertionError("resized once more")

    monkeypatch.setattr(cache, "_resize", never)
    assert (resize_all(mapped, 20, "rgb").array == first.array).all()


def test_a_cache_entry_has_the_documented_files(photos: Path) -> None:
    files = [*find_images(photos)[:4], "missing.jpg"]
    decode_all(files, 16, "crop", "rgb")
    (folder,) = [p for p in cache.cache_folder().iterdir() if p.is_dir()]
    assert np.load(folder / "images.npy").shape == (5, 16, 16, 3)
    assert not np.load(folder / "images.npy")[4].any()
    assert json.loads((folder / "bad.json").read_text()) == {"4": "no such file"}


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.cache_folder() == Path(os.environ["SSLRUN_CACHE"], "decoded")
    monkeypatch.delenv("SSLRUN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache.cache_folder() == Path("/x/sslrun/decoded")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_folder() == Path.home() / ".cache/sslrun/decoded"


def test_processes_and_threads_decode_the_same_in_the_same_order(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("bad.jpg").write_text("text")
    files = [*find_images(photos), "bad.jpg", *find_images(photos)]
    threads = decode_all(files, 16, "crop", "rgb")
    monkeypatch.setenv("SSLRUN_CACHE", "another")
    monkeypatch.setattr(workers, "WORTH_PROCESSES", 100)
    monkeypatch.setattr(cache, "CHUNK", 5 * 16 * 16 * 3)
    processes = decode_all(files, 16, "crop", "rgb")
    assert (threads.array == processes.array).all()
    assert threads.bad == processes.bad == {60: "not an image in a supported format"}


def test_a_file_that_could_not_be_opened_is_retried(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = find_images(photos)[:4]
    plain = Image.open

    def failing(path: Any, *rest: Any, **more: Any) -> Any:
        if str(path) == files[2]:
            raise OSError(errno.EIO, "Input/output error")
        return plain(path, *rest, **more)

    with monkeypatch.context() as broken:
        broken.setattr(Image, "open", failing)
        for _ in range(2):
            assert decode_all(files, 16, "crop", "rgb").bad == {2: "cannot be opened: Input/output error"}
    result = decode_all(files, 16, "crop", "rgb")
    assert result.bad == {}
    assert (result.array[2] == decode(files[2], 16)).all()


def test_arrays_in_memory_are_cached_by_content(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(0, 255, (50, 12, 12, 1), dtype=np.uint8)
    first = resize_all(array, 20, "rgb")
    assert isinstance(first.array, np.memmap)
    assert (first.array == resized(array, 20, "rgb")).all()
    other = array.copy()
    other[7] += 1
    assert (resize_all(other, 20, "rgb").array == resized(other, 20, "rgb")).all()


def test_two_slices_of_one_memory_mapped_file_are_distinct_entries() -> None:
    array = np.random.default_rng(0).integers(0, 255, (40, 8, 8, 3), dtype=np.uint8)
    np.save("a.npy", array)
    mapped = np.load("a.npy", mmap_mode="r")
    for part in (slice(0, 20), slice(20, 40), slice(None)):
        assert (resize_all(mapped[part], 8, "rgb").array == array[part]).all()


def by_pillow(array: np.ndarray, image_size: int, gray: bool = False) -> np.ndarray:
    size, images = (image_size, image_size), map(Image.fromarray, array)
    small = [(i.convert("L").convert("RGB") if gray else i).resize(size, Image.Resampling.BILINEAR) for i in images]
    return np.stack([np.asarray(i) for i in small])


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 24, 24, 3), dtype=np.uint8)


def test_gray_is_pillows_luminance(noise: np.ndarray) -> None:
    colors = np.broadcast_to(np.diag([255, 255, 255]).astype(np.uint8)[:, None, None], (3, 24, 24, 3))
    result = resized(np.concatenate([colors, noise]), 24, "gray")
    expected = by_pillow(np.concatenate([colors, noise]), 24, gray=True)
    assert result[:3, 0, 0, 0].tolist() == [76, 150, 29]  # red, green, blue
    assert np.abs(result.astype(int) - expected).max() <= 1
    assert (result == result[..., :1]).all()


@pytest.mark.parametrize("image_size", [8, 10, 16, 32, 48])
def test_images_shrink_and_grow_as_pillow_does_it(noise: np.ndarray, image_size: int) -> None:
    """In particular every pixel of a large image counts, and not every third alone."""
    result = resized(noise, image_size, "rgb").astype(int)
    assert np.abs(result - by_pillow(noise, image_size)).max() <= 1


def test_images_of_one_channel_have_it_three_times(noise: np.ndarray) -> None:
    assert (resized(noise[..., :1], 24, "rgb") == noise[..., :1]).all()
    assert (resized(noise[..., :1], 24, "gray") == noise[..., :1]).all()


@pytest.mark.parametrize("mapped", [False, True])
def test_arrays_of_the_same_bytes_in_another_shape_order_or_color_are_distinct_entries(mapped: bool) -> None:
    values = np.random.default_rng(0).integers(0, 255, 2 * 12 * 12 * 3, dtype=np.uint8)
    values.tofile("array.bin")
    plain: np.ndarray = np.memmap("array.bin", dtype=np.uint8, mode="r") if mapped else values
    square = plain.reshape(2, 12, 12, 3)
    for array in (square, square.transpose(0, 2, 1, 3), plain.reshape(2, 6, 24, 3), plain.reshape(6, 12, 12, 1)):
        for size, channels in ((12, "rgb"), (12, "gray"), (8, "rgb")):
            result = resize_all(array, size, channels)  # type: ignore[arg-type]
            assert (result.array == resized(array, size, channels)).all()  # type: ignore[arg-type]
            assert result.bad == {}


def test_several_unreadable_images_are_left_out() -> None:
    array = np.arange(6, dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    decoded = cache.Decoded(array, cache.digests(array), {4: "x", 1: "y"}, {})
    assert decoded.good().tolist() == [0, 2, 3, 5]
    assert decoded.images()[:][:, 0, 0, 0].tolist() == [0, 2, 3, 5]
    assert decoded.images().fingerprint().hexdigest() == cache.Decoded(
        array[[0, 2, 3, 5]], decoded.digests[[0, 2, 3, 5]], {}, {}
    ).images().fingerprint().hexdigest()  # fmt: skip


def plain_file(path: str, value: int) -> str:
    """Write an image of one color, at the same time and of the same size as all others."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, value, value)).save(path)
    os.utime(path, ns=(10**18, 10**18))
    return path


def values_of(files: list[str]) -> list[int]:
    return decode_all(files, 8, "crop", "rgb").array[:, 0, 0, 0].tolist()


def test_files_of_the_same_name_size_and_time_in_other_folders_are_other_entries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a, b = plain_file("a/x.bmp", 10), plain_file("b/x.bmp", 20)
    assert [values_of([a]), values_of([b]), values_of([a, b]), values_of([b, a])] == [[10], [20], [10, 20], [20, 10]]
    for folder, value in (("a", 10), ("b", 20)):
        with monkeypatch.context() as here:
            here.chdir(folder)
            assert values_of(["x.bmp"]) == [value]


def test_the_position_of_a_missing_file_is_part_of_the_entry() -> None:
    file = plain_file("x.bmp", 10)
    assert [values_of([file, "none.bmp"]), values_of(["none.bmp", file])] == [[10, 0], [0, 10]]
    assert decode_all(["none.bmp", file], 8, "crop", "rgb").bad == {0: "no such file"}


@pytest.mark.skipif(sys.platform != "linux", reason="makes a file whose name is not UTF-8")
def test_a_file_name_may_have_bytes_that_are_not_utf_8() -> None:
    assert values_of([plain_file("caf\udce9.bmp", 10)]) == [10]


@pytest.mark.parametrize(
    ("name", "array"), [("images.npy", np.zeros((1, 8, 8, 3), np.uint8)), ("digests.npy", np.zeros((1, 16), np.uint8))]
)
def test_an_entry_of_another_number_of_images_is_created_again(name: str, array: np.ndarray) -> None:
    files = [plain_file("a.bmp", 10), plain_file("b.bmp", 20)]
    first = decode_all(files, 8, "crop", "rgb").digests.copy()
    (folder,) = [p for p in cache.cache_folder().iterdir() if p.is_dir()]
    np.save(folder / name, array)
    assert values_of(files) == [10, 20]
    again = decode_all(files, 8, "crop", "rgb")
    assert (again.digests == first).all()
    assert again.array.flags.writeable  # in memory alone, since torch warns of arrays that are not


def test_files_of_the_cache_are_read_at_random_and_small_ones_fetched_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Recorded(mmap.mmap):
        def madvise(self, option: int, *rest: Any) -> None:
            advice.append(option)

    advice: list[int] = []
    files = [plain_file("a.bmp", 10)]
    values_of(files)
    monkeypatch.setattr(mmap, "mmap", Recorded)
    for memory, expected in ((10**9, [mmap.MADV_RANDOM, mmap.MADV_WILLNEED]), (4 * 8 * 8 * 3, [mmap.MADV_RANDOM])):
        monkeypatch.setattr(cache, "physical_memory", lambda memory=memory: memory)
        advice.clear()
        values_of(files)
        assert advice == expected


def test_without_a_cache_as_many_images_as_fit_into_half_of_the_memory_are_decoded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Path("file").write_text("in the way")
    monkeypatch.setenv("SSLRUN_CACHE", "file")
    monkeypatch.setattr(cache, "CHUNK", 1)
    Path("text.jpg").write_text("text")
    files = [plain_file("a.bmp", 10), plain_file("b.bmp", 20), "text.jpg", plain_file("c.bmp", 30)]
    for memory in (2 * 4 * 8 * 8 * 3, 0):  # 0 is unknown
        monkeypatch.setattr(cache, "physical_memory", lambda memory=memory: memory)
        decoded = decode_all(files, 8, "crop", "rgb")
        assert decoded.array[:, 0, 0, 0].tolist() == [10, 20, 0, 30]
        assert decoded.bad == {2: "not an image in a supported format"}
        assert (decoded.digests == cache.digests(decoded.array)).all()
    assert "Cannot cache decoded images in file/decoded" in caplog.text
    monkeypatch.setattr(cache, "physical_memory", lambda: 2 * 4 * 8 * 8 * 3 - 2)
    with pytest.raises(UserError, match=r"the decoded images need 0.0 GB, too much for memory: free space in file"):
        decode_all(files, 8, "crop", "rgb")


def test_a_disk_without_space_for_the_entry_is_not_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    free = SimpleNamespace(free=8 * 8 * 3 + (64 << 20) - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    file = plain_file("a.bmp", 10)
    assert not isinstance(decode_all([file], 8, "crop", "rgb").array, np.memmap)
    free.free += 1
    assert isinstance(decode_all([file], 8, "crop", "rgb").array, np.memmap)


def test_what_an_earlier_process_left_behind_is_not_part_of_an_entry() -> None:
    file = plain_file("a.bmp", 10)
    values_of([file])
    (folder,) = [p for p in cache.cache_folder().iterdir() if p.is_dir()]
    shutil.rmtree(folder)
    folder.with_name(f"{folder.name}.part").mkdir()
    Path(f"{folder}.part", "old").write_text("x")
    assert values_of([file]) == [10]
    assert sorted(os.listdir(folder)) == ["bad.json", "digests.npy", "images.npy", "outside.json"]


def test_blocks_may_be_of_any_size_and_each_image_is_counted_once(
    monkeypatch: pytest.MonkeyPatch, noise: np.ndarray
) -> None:
    counted: list[int] = []
    monkeypatch.setattr(cache, "progress", lambda *_: nullcontext(counted.append))
    whole = resized(noise, 16, "rgb")
    monkeypatch.setattr(cache, "BLOCK", 1)
    assert (resized(noise, 16, "rgb") == whole).all()
    files = [plain_file(f"{i}.bmp", i) for i in range(7)]
    for chunk in (1, 3 * 8 * 8 * 3, 10**6):
        monkeypatch.setenv("SSLRUN_CACHE", f"cache {chunk}")
        monkeypatch.setattr(cache, "CHUNK", chunk)
        counted.clear()
        assert values_of(files) == list(range(7))
        assert sum(counted) == 7
