"""The range of a data set's gray images of more than 8 bits: one for all images, measured once."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sslrun.base.console import forget_logged
from sslrun.base.errors import UserError
from sslrun.data import decode as decoding
from sslrun.data import gray_range
from sslrun.data.dataset import load, load_test, load_unlabeled, with_range
from sslrun.data.gray_range import measured
from tests.helpers import folder_node, load_split, source_node
from tests.tiffs import write_tiff

STEPS = np.linspace(-0.01, 1.01, 1024).clip(0, 1).reshape(32, 32)  # several values at each end


def save(name: str, array: np.ndarray) -> str:
    """Save an image; a TIFF as it is, since Pillow would save unsigned 32 bits as something else."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".tif"):
        return write_tiff(name, array)
    Image.fromarray(array).save(name)
    return name


def between(low: float, high: float, type_: str) -> np.ndarray:
    """Return an image whose values rise evenly."""
    return (low + STEPS * (high - low)).astype(type_)


def spied(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    """Return the list of the files that a function of the module gets."""
    seen: list[str] = []
    function = getattr(gray_range, name)

    def spy(files: Sequence[str]) -> Any:
        seen.extend(files)
        return function(files)

    monkeypatch.setattr(gray_range, name, spy)
    return seen


def with_hot_pixel(array: np.ndarray, value: float, n: int = 1) -> np.ndarray:
    changed = array.copy()
    changed.flat[500 : 500 + n] = value
    return changed


@pytest.mark.parametrize(
    ("low", "high", "type_", "expected"),
    [
        (0.2, 0.8, "<f4", [0, 1]),
        (0.0, 1.0, ">f4", [0, 1]),
        (0, 255, "<f4", [0, 255]),  # 8 bits as floating point
        (30, 200, "<u2", [0, 255]),  # 8 bits in 16
        (0, 255, "<i4", [0, 255]),
        (0, 1000, "<u2", [0, 1023]),
        (150, 3900, "<u2", [0, 4095]),  # 12 bits in 16
        (10, 3000, ">u2", [0, 4095]),
        (0, 16000, "<u2", [0, 16383]),
        (0, 60000, "<u2", [0, 65535]),
        (200, 40000, "<i4", [0, 65535]),
        (0, 4e9, "<u4", [0, 2**32 - 1]),  # more than signed integers have
        (1000, 1500, "<u2", [1000, 1500]),  # the dark current of a camera: an offset
        (20000, 20400, "<u2", [20000, 20400]),
        (0, 3, "<u2", [0, 3]),  # labels of a mask
        (0, 1234567, "<u4", [0, 1240000]),
        (-1024, 3071, "<i2", [-1030, 3080]),  # computed tomography
        (-2.4567, 3.1234, "<f4", [-2.46, 3.13]),  # standardized
        (-1, 1, "<f4", [-1, 1]),
        (0.001, 0.0034, "<f4", [0.001, 0.00341]),  # rounded outward from 0.00340000004
        (273.15, 310.2, "<f4", [273.1, 310.3]),  # degrees
    ],
)
def test_the_range_is_the_usual_one_around_the_values_or_the_measured_one(
    low: float, high: float, type_: str, expected: list[float]
) -> None:
    files = [save(f"{i}.tif", between(low, high, type_)) for i in range(3)]
    assert measured(files) == expected


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (with_hot_pixel(between(0.2, 0.8, "<f4"), 1.02), [0, 1]),  # one pixel of 1,024
        (with_hot_pixel(between(0, 4000, "<u2"), 65535), [0, 4095]),
        (with_hot_pixel(between(0, 1, "<f4"), np.nan, 50), [0, 1]),
        (with_hot_pixel(between(0, 1, "<f4"), np.inf, 50), [0, 1]),
        (with_hot_pixel(np.zeros((32, 32), "<u2"), 4000, 5), [0, 4095]),  # sparse bright spots are no hot pixel
        (with_hot_pixel(np.full((32, 32), 0.1, "<f4"), 0.9, 3), [0, 1]),
    ],
)
def test_a_hot_pixel_does_not_widen_the_range_and_bright_spots_do(array: np.ndarray, expected: list[float]) -> None:
    assert measured([save("a.tif", array)]) == expected


@pytest.mark.parametrize(
    ("value", "type_", "expected"),
    [(0, "<u2", [0, 255]), (7, "<u2", [0, 255]), (0.5, "<f4", [0, 1]), (-3.0, "<f4", None), (-5, "<i4", None)],
)
def test_images_of_one_value_have_a_range(value: float, type_: str, expected: list[float] | None) -> None:
    result = measured([save("a.tif", np.full((4, 4), value, type_))])
    assert result is not None
    assert result == expected or (expected is None and result[0] <= value < result[1])


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 2), (3, 1)])
def test_the_smallest_images_have_a_range(shape: tuple[int, int]) -> None:
    result = measured([save("a.tif", np.arange(shape[0] * shape[1]).reshape(shape).astype("<u2") * 900)])
    assert result is not None
    assert result[0] < result[1]


def test_one_of_a_thousand_images_is_an_outlier_and_three_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gray_range, "IGNORED", 0.02)
    files = [save(f"{i:02}.tif", between(0, 4000, "<u2")) for i in range(50)]
    save("07.tif", between(0, 60000, "<u2"))
    assert measured(files) == [0, 4095]
    for i in (3, 5):
        save(f"{i:02}.tif", between(0, 60001, "<u2"))
        os.utime(f"{i:02}.tif", ns=(1, i))
    assert measured(files) == [0, 65535]


def test_of_many_images_some_are_measured_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gray_range, "MEASURED", 10)
    read = spied(monkeypatch, "_extremes")
    files = [save(f"{i:02}.tif", between(0, 9, "<u2")) for i in range(35)]
    measured(files)
    assert read == files[::4]


def test_only_files_that_can_have_more_than_8_bits_are_opened(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sslrun")
    flat = np.full((8, 8), 9, np.uint8)
    files = [save(f"{i}.{s}", flat) for i, s in enumerate(("jpg", "bmp", "png", "gif", "png"))]
    seen = spied(monkeypatch, "_kinds")
    assert measured(files) is None
    assert seen == ["2.png", "4.png"]
    assert measured(files[:2]) is None
    assert "dataset.range" not in caplog.text
    files.append(save("5.PNG".lower(), between(0, 4000, "<u2").astype(np.uint16)))
    assert measured(files) == [0, 4095]
    assert (
        "1 gray image of 16 bits: range 0 to 4095 (dataset.range); 5 images of 8 bits read as they are." in caplog.text
    )


def test_the_same_files_are_measured_once_and_changed_ones_again(monkeypatch: pytest.MonkeyPatch) -> None:
    read = spied(monkeypatch, "_extremes")
    files = [save(f"{i}.tif", between(0, 3000, "<u2")) for i in range(3)]
    assert [measured(files), measured(files)] == [[0, 4095]] * 2
    assert read == files
    save("1.tif", between(0, 60000, "<u2"))
    os.utime("1.tif", ns=(1, 1))
    assert measured(files) == [0, 65535]
    for entry in Path("cache/ranges").glob("*.json"):
        entry.write_text("damaged")
    assert measured(files) == [0, 65535]
    assert read == 3 * files


def test_a_cache_that_cannot_be_written_is_no_error() -> None:
    Path("cache").write_text("a file")
    assert measured([save("a.tif", between(0, 3000, "<u2"))]) == [0, 4095]


def test_damaged_files_are_left_to_decoding() -> None:
    files = [save("a.tif", between(0, 3000, "<u2")), "b.tif", "none.tif"]
    Path("b.tif").write_bytes(Path("a.tif").read_bytes()[:300])
    assert measured(files) == [0, 4095]
    assert measured(files[1:]) is None


def test_a_file_that_cannot_be_opened_now_is_measured_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [save(f"{i}.tif", between(0, high, "<u2")) for i, high in enumerate((3000, 60000))]
    opened = decoding.os.stat

    def failing(path: Any, **keys: Any) -> os.stat_result:
        if path == "1.tif" and sys._getframe(1).f_code.co_name == "opened":
            raise OSError(5, "Input/output error")
        return opened(path, **keys)

    with monkeypatch.context() as patch:
        patch.setattr(decoding.os, "stat", failing)
        assert measured(files) == [0, 4095]
    assert measured(files) == [0, 65535]


def test_a_worker_process_does_not_import_torch() -> None:
    code = "import sys, sslrun.data.gray_range; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_worker_processes_measure_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [save(f"{i}.tif", between(10 * i, 3000 + i, "<u2")) for i in range(4)]
    threads = measured(files)
    monkeypatch.setattr("sslrun.data.workers.WORTH_PROCESSES", 2)
    monkeypatch.setattr("sslrun.data.workers.cores", lambda: 2)
    monkeypatch.setenv("SSLRUN_CACHE", "another")
    assert measured(files) == threads == [0, 4095]


# Data sets


def deep_folder(type_: str, low: float, high: float, suffix: str = "tif") -> Path:
    """Write 20 images of two classes; those of the second class are half as bright."""
    for c, name in enumerate(("a", "b")):
        for i in range(10):
            array = between(low, high - c * (high - low) / 2, type_)
            save(f"set/{name}/{i}.{suffix}", array if suffix == "tif" else array.astype(type_.lstrip("<>")))
    return Path("set")


def test_all_images_of_a_data_set_have_one_range() -> None:
    """Half as bright is half as bright, though each image alone would reach its own white."""
    node = folder_node(deep_folder("<f4", 0.0, 1.0), image_size=32, resize="squash")
    data = load(node, "train")
    assert data is not None
    assert data.range == [0, 1]
    brightest = data.images[:].flatten(1).max(1).values
    assert data.labels is not None
    assert set(brightest[data.labels == 0].tolist()) == {255}
    assert set(brightest[data.labels == 1].tolist()) == {127}


EIGHT = np.random.default_rng(0).integers(0, 256, (6, 32, 32))
EIGHT[:, :2] = np.array([0, 255])[:, None]  # black and white in each


@pytest.mark.parametrize(
    ("arrays", "photometric", "most"),
    [
        ((EIGHT / 255).astype("<f4"), 1, 0),
        ((EIGHT / 255).astype(">f4"), 1, 0),
        (EIGHT.astype("<f4"), 1, 0),
        (((EIGHT - 120) / 57).astype("<f4"), 1, 3),  # standardized: the measured range, rounded outward
        (1 - (EIGHT / 255).astype("<f4"), 0, 3),  # inverted, so that the values are -1 to 0
        (EIGHT.astype("<u2"), 1, 0),
        (EIGHT.astype("<i4"), 1, 0),
        (EIGHT.astype("<i2"), 1, 0),
        ((EIGHT * 4095 / 255).astype("<u2"), 1, 1),  # 12 bits in 16
        ((EIGHT * 257).astype("<u2"), 1, 0),
        ((EIGHT * 257).astype(">u2"), 1, 0),
        ((65535 - EIGHT * 257).astype("<u2"), 0, 0),
        ((EIGHT * 16843009).astype("<u4"), 1, 0),
        ((EIGHT + 20000).astype("<u2"), 1, 3),  # an offset
        ((EIGHT - 128).astype("<i2"), 1, 3),
    ],
)
def test_any_kind_of_values_gives_the_pixels_of_the_same_images_of_8_bits(
    arrays: np.ndarray, photometric: int, most: int
) -> None:
    Path("set").mkdir()
    for i, array in enumerate(arrays):
        write_tiff(f"set/{i}.tif", array, photometric)
    data = load(folder_node("set", image_size=32), "train")
    assert data is not None
    assert np.abs(data.images[:][:, 0].numpy().astype(int) - EIGHT).max() <= most
    resized = load(folder_node("set", image_size=8, resize="pad", channels="gray"), "train")
    assert resized is not None
    for i, image in enumerate(EIGHT):
        expected = Image.fromarray(image.astype(np.uint8)).resize((8, 8), Image.Resampling.BILINEAR)
        assert np.abs(resized.images[:][i, 0].numpy().astype(int) - np.asarray(expected)).max() <= most + 1


@pytest.mark.parametrize(("type_", "factor", "hot"), [("<f4", 1, 1.02), ("<u2", 4095, 65535), ("<i4", 255, -9999)])
def test_one_hot_pixel_turns_neither_its_image_nor_the_others_black(type_: str, factor: float, hot: float) -> None:
    halves = np.repeat([0.2, 0.8], 512).reshape(32, 32) * factor
    Path("set").mkdir()
    for i in range(3):
        array = halves.astype(type_)
        array[5, 5] = hot if i == 1 else array[5, 5]
        write_tiff(f"set/{i}.tif", array)
    data, _ = load_split(folder_node("set", image_size=32))
    for image in data.images[:][:, 0]:
        assert (image[0, 0], image[-1, -1]) == (51, 204)
    assert data.images[:][1, 0, 5, 5] == (255 if hot > 0 else 0)


def test_every_split_is_read_with_the_range_of_the_train_split() -> None:
    for split, high in (("train", 4000), ("test", 60000), ("unlabeled", 3000)):
        for name in ("a", "b"):
            for i in range(3):
                folder = f"set/{split}" + ("" if split == "unlabeled" else f"/{name}")
                save(f"{folder}/{name}{i}.tif", between(0, high, "<u2"))
    node = folder_node("set", image_size=32)
    resolved = with_range(node)
    assert resolved == {**node, "range": [0, 4095]}
    for of in (node, resolved):
        test = load_test(of)
        assert test.range == [0, 4095]
        assert (test.images[:] == 255).float().mean() > 0.9  # brighter than anything in train
        (own,) = load_unlabeled(of, None)
        assert own.range == [0, 4095]
        assert own.images[:].max() == 187  # 3,000 of 4,095
    assert load_test(node).fingerprint() == load_test(resolved).fingerprint()


def test_without_training_images_a_split_has_its_own_range() -> None:
    test = load(folder_node(deep_folder("<u2", 0, 3000), test_fraction=1.0), "test")
    assert test is not None
    assert (len(test), test.range) == (20, [0, 4095])


def test_the_unlabeled_split_counts_and_max_images_and_classes_do_not() -> None:
    root = deep_folder("<u2", 0, 3000)
    save("set/unlabeled/bright.tif", between(0, 60000, "<u2"))
    for keys in ({}, {"max_images": 4}, {"classes": ["b"]}, {"classes": {"both": ["a", "b"]}}):
        assert with_range(folder_node(root, **keys))["range"] == [0, 65535]


def test_an_unlabeled_folder_has_the_range_of_the_data_set_or_its_own_if_that_has_none(photos: Path) -> None:
    for i in range(3):
        save(f"more/{i}.tif", between(0, 60000, "<u2"))
    flat = folder_node(photos, image_size=32)
    for node in (flat, {**flat, "range": None}):
        (extra,) = load_unlabeled(node, "more")
        assert extra.range == [0, 65535]
    (extra,) = load_unlabeled(folder_node(deep_folder("<u2", 0, 3000)), "more")
    assert extra.range == [0, 4095]


def test_a_given_range_is_used_and_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslrun.data.dataset.measured", lambda files: pytest.fail("measured"))
    node = folder_node(deep_folder("<u2", 0, 4000), image_size=32, range=[1000, 2000])
    assert with_range(node) is node
    train, _ = load_split(node)
    assert train.range == [1000, 2000]
    assert train.images[:].flatten(1).max(1).values.tolist() == [255] * len(train)


def test_an_8_bit_data_set_has_no_range_and_the_same_pixels_with_any(photos: Path) -> None:
    node = folder_node(photos)
    assert with_range(node) == {**node, "range": None}
    train, _ = load_split(node)
    other, _ = load_split({**node, "range": [0, 9]})
    assert train.range is None
    assert train.fingerprint() == other.fingerprint()
    assert load(source_node("digits", None), "train").range is None  # type: ignore[union-attr]


def test_a_mixed_data_set_reads_8_bit_images_as_they_are() -> None:
    root = deep_folder("<u2", 0, 4095)
    flat = np.full((32, 32), 77, np.uint8)
    save("set/a/flat.png", flat)
    data, _ = load_split(folder_node(root, image_size=32, test_fraction=0.01))
    assert data.range == [0, 4095]
    assert (data.images[:][data.names.index("a/flat.png")] == 77).all()


def test_the_range_of_a_folder_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sslrun")
    root = deep_folder("<u2", 0, 4095)
    for _ in range(2):
        load_split(folder_node(root, image_size=32, test_fraction=0.01))
    assert len([m for m in caplog.messages if "(dataset.range)" in m]) == 1
    forget_logged()  # as at the beginning of the next run
    load_split(folder_node(root, image_size=32, test_fraction=0.01))
    assert len([m for m in caplog.messages if "(dataset.range)" in m]) == 2


def test_values_outside_are_reported_once_for_each_split_and_cached(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "sslrun")
    root = deep_folder("<f4", 0.1, 0.9)
    save("set/a/0.tif", with_hot_pixel(between(0.1, 0.9, "<f4"), 1.02))
    save("set/a/1.tif", with_hot_pixel(between(0.1, 0.9, "<f4"), 5.0, 1))
    for _ in range(2):  # decoded, and from the cache
        caplog.clear()
        load_split(folder_node(root, test_fraction=0.01))
        lines = [r.getMessage() for r in caplog.records if "outside" in r.getMessage()]
        assert lines == [
            "2 of 20 images in train have values outside dataset.range=[0,1] (0.098 % of their values), clipped."
        ]
    (entry,) = Path("cache/decoded").glob("*/outside.json")
    assert set(json.loads(entry.read_text()).values()) == {1 / 1024}


def test_another_range_is_another_cache_entry() -> None:
    root = deep_folder("<u2", 0, 4000)
    first, second = (load_split(folder_node(root, range=r))[0] for r in ([0, 4095], [0, 65535]))
    assert first.fingerprint() != second.fingerprint()
    again, _ = load_split(folder_node(root, range=[0.0, 4095.0]))  # the same number
    assert len(list(Path("cache/decoded").glob("*/images.npy"))) == 2
    assert again.fingerprint() == first.fingerprint()


def test_without_a_range_floating_point_images_stop_a_run_with_the_reason() -> None:
    node: dict[str, Any] = folder_node(deep_folder("<f4", 0, 1), range=None)
    with pytest.raises(UserError, match=r"gray image of 32 bits \(float\), but there is no dataset\.range"):
        load_split(node)
