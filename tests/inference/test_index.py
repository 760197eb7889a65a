"""Features that are cached between commands."""

import itertools
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sslrun
from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.data.tree import find_images
from sslrun.device import Device
from sslrun.inference.index import indexed
from sslrun.inference.model import Model
from sslrun.models.trained import Trained
from tests.helpers import CPU, NO_MAP, QUICK, Cli, runs, small_encoder


def cached(log: str) -> tuple[int, int]:
    """Return how many features came from the cache, and of how many images."""
    result = re.search(r"Cached features: (\d+) of (\d+) images", log)
    return (int(result[1]), int(result[2])) if result else (0, 0)


def test_only_new_and_changed_files_go_through_the_network_again(in_world: Path, cli: Cli, few_photos: Path) -> None:
    assert cached(cli("embed", str(few_photos), *NO_MAP).err) == (0, 0)
    assert cached(cli("embed", str(few_photos), *NO_MAP).err) == (12, 12)
    shutil.copy(next(few_photos.rglob("temple*.jpg")), few_photos / "temple/new.jpg")
    changed = few_photos / "flower/flower 00.jpg"
    before = sslrun.load(device="cpu").embed([changed])
    Image.open(changed).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(changed)
    answer = cli("search", str(changed), f"in={few_photos}", "format=json", *QUICK)  # cached by embed
    assert cached(answer.err) == (11, 13)
    assert cli("embed", str(few_photos), "out=after.npz", *NO_MAP).code == 0
    result = dict(zip(np.load("after.npz")["images"].tolist(), np.load("after.npz")["features"], strict=True))
    assert np.allclose(result[str(changed)], sslrun.load(device="cpu").embed([changed])[0], atol=1e-5)
    assert not np.allclose(result[str(changed)], before[0], atol=1e-3)
    (archive,) = Path("cache/features").glob("*.npz")
    whole = archive.read_bytes()
    for damaged in (whole[:1000], whole[:69] + b"\0" + whole[70:], b"PK" + bytes(500)):
        archive.write_bytes(damaged)
        answer = cli("embed", str(few_photos), *NO_MAP)
        assert answer.code == 0, answer.err
        assert "damaged" in answer.err
    other = runs("pretrain")[-1]
    assert cached(cli("embed", str(few_photos), f"run={other}", *NO_MAP).err) == (0, 0)


def test_two_files_that_were_swapped_are_embedded_again(in_world: Path, cli: Cli) -> None:
    Path("two").mkdir()
    for name, color in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (32, 32), color).save(f"two/{name}.bmp")
        os.utime(f"two/{name}.bmp", (1e9, 1e9))
    assert cli("embed", "two", "out=before.npz", *NO_MAP).code == 0
    Path("two/a.bmp").rename("two/c.bmp")
    Path("two/b.bmp").rename("two/a.bmp")
    Path("two/c.bmp").rename("two/b.bmp")
    assert cli("embed", "two", "out=after.npz", *NO_MAP).code == 0
    assert np.allclose(np.load("before.npz")["features"], np.load("after.npz")["features"][::-1])


def test_each_stage_has_features_of_its_own_in_the_cache(few_photos: Path) -> None:
    Path("best.pt").write_bytes(b"weights")
    config = {"dataset": {"image_size": 32, "resize": "crop", "channels": "rgb", "range": None}}
    model = Model(Trained(small_encoder((4, 8)), config, Path("best.pt")), CPU)
    files = find_images(few_photos)
    for _ in range(2):  # the second time from the cache
        for stage, width in ((1, 4), (2, 8)):
            assert indexed(model, files, stage, 8)[1].shape == (12, width)


class Recorder(Model):
    """Has the brightness of each image as its only feature, and remembers the files that went through the network."""

    def __init__(self, weights: str = "best.pt", device: Device = CPU) -> None:
        config = {"dataset": {"image_size": 8, "resize": "squash", "channels": "rgb", "range": None}}
        super().__init__(Trained(small_encoder((4,)), config, Path(weights)), device)
        self.embedded: list[str] = []

    def embed_readable(self, images: Any, stage: int | None = None, batch_size: int = 256) -> Any:
        self.embedded += images
        bad = {f: "no such file" for f in images if not os.path.exists(f)}
        good = [np.asarray(Image.open(f)).mean() for f in images if f not in bad]
        return np.array(good, dtype=np.float32).reshape(-1, 1), bad


def paint(name: str, shade: int) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(name)
    return name


def brightness(model: Model, *files: str, stage: int | None = None) -> list[tuple[str, float]]:
    names, features, _ = indexed(model, files, stage, 8)
    assert len(names) == len(features)
    return list(zip(names, features[:, 0].tolist(), strict=True))


def test_cached_features_keep_the_order_of_the_files_and_unreadable_ones_are_left_out() -> None:
    Path("best.pt").write_bytes(b"weights")
    a, b, c = paint("a.bmp", 10), paint("b.bmp", 20), paint("c.bmp", 30)
    model = Recorder()
    assert brightness(model, c, a) == [(c, 30), (a, 10)]
    assert brightness(model, a, "gone.bmp", b, c) == [(a, 10), (b, 20), (c, 30)]
    assert model.embedded == [c, a, "gone.bmp", b]
    assert indexed(model, [b, "gone.bmp"], None, 8)[2] == {"gone.bmp": "no such file"}
    assert brightness(Recorder(), c, b, a, c) == [(c, 30), (b, 20), (a, 10), (c, 30)]
    with pytest.raises(UserError, match=r"no image can be read \(2 files\); the first: x\.bmp: no such file"):
        indexed(model, ["x.bmp", "y.bmp"], None, 8)


def test_features_of_other_existing_files_stay_in_the_cache_and_those_of_deleted_files_do_not() -> None:
    Path("best.pt").write_bytes(b"weights")
    a, b, c = paint("a.bmp", 10), paint("b.bmp", 20), paint("c.bmp", 30)
    for name in (a, b, c):
        indexed(Recorder(), [name], None, 8)
    os.remove(b)
    indexed(Recorder(), [paint("d.bmp", 40)], None, 8)
    (archive,) = Path("cache/features").glob("*.npz")
    assert sorted(Path(f).name for f in np.load(archive)["files"].tolist()) == ["a.bmp", "c.bmp", "d.bmp"]
    model = Recorder()
    assert brightness(model, a, c, "d.bmp") == [(a, 10), (c, 30), ("d.bmp", 40)]
    assert model.embedded == []


def test_files_of_the_same_name_in_two_folders_are_two_files(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = Path("best.pt").resolve()
    weights.write_bytes(b"weights")
    paint("one/a.bmp", 10)
    paint("two/a.bmp", 20)
    for folder, shade in (("one", 10), ("../two", 20)):
        monkeypatch.chdir(folder)
        assert brightness(Recorder(str(weights)), "a.bmp") == [("a.bmp", shade)]


def test_a_changed_file_with_equal_size_or_equal_times_is_embedded_again() -> None:
    Path("best.pt").write_bytes(b"weights")
    name = paint("a.bmp", 10)
    indexed(Recorder(), [name], None, 8)
    stat = os.stat(name)
    paint(name, 20)
    os.utime(name, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert brightness(Recorder(), name) == [(name, 20)]


def test_each_checkpoint_stage_and_precision_has_its_own_features() -> None:
    for name, content in (("best.pt", b"weights"), ("other.pt", b"others"), ("copy.pt", b"weights")):
        Path(name).write_bytes(content)
    a = paint("a.bmp", 10)
    bf16 = Device(
        name="cpu", precision="bf16", memory_format="contiguous", compile=None, deterministic=False, threads=None
    )
    cases = (
        [("best.pt", CPU, None, 1), ("other.pt", CPU, None, 1), ("best.pt", bf16, None, 1), ("best.pt", CPU, 1, 1)],
        [("best.pt", CPU, None, 0), ("copy.pt", CPU, None, 0), ("other.pt", CPU, None, 0), ("best.pt", bf16, None, 0)],
    )
    for weights, device, stage, new in itertools.chain(*cases):
        model = Recorder(weights, device)
        indexed(model, [a], stage, 8)
        assert len(model.embedded) == new, (weights, device.precision, stage)


def test_at_most_20_unreadable_files_are_logged_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("best.pt").write_bytes(b"weights")
    messages: list[str] = []
    monkeypatch.setattr(log, "warning", lambda text, *values: messages.append(text % values))
    a = paint("a.bmp", 10)
    indexed(Recorder(), [a, *(f"{i}.bmp" for i in range(23))], None, 8)
    assert messages == [*(f"Cannot read {i}.bmp: no such file" for i in range(20)), "... and 3 more"]
    messages.clear()
    indexed(Recorder(), [a, *(f"{i}.bmp" for i in range(20))], None, 8)
    assert len(messages) == 20


def test_a_cache_that_cannot_be_created_is_only_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("best.pt").write_bytes(b"weights")
    Path("file").write_text("no folder")
    monkeypatch.setenv("SSLRUN_CACHE", str(Path("file").resolve()))
    messages: list[str] = []
    monkeypatch.setattr(log, "warning", lambda text, *values: messages.append(text % values))
    a = paint("a.bmp", 10)
    assert brightness(Recorder(), a) == [(a, 10)]
    assert all(m.startswith("Cannot cache features in ") for m in messages)
    assert messages
