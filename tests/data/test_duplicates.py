"""Exact and near duplicates, file headers, and files that are not images."""

import io
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from sslrun.data import duplicates
from sslrun.data.cache import decode_all
from sslrun.data.decode import read_headers
from sslrun.data.duplicates import SAME, exact_duplicates, headers, near_duplicates
from sslrun.data.images import Images, digests
from sslrun.data.tree import find_images
from tests.published import piece


def images(*images: Image.Image) -> Images:
    array = np.stack([np.asarray(p.convert("RGB").resize((64, 64))) for p in images])
    return Images([torch.from_numpy(array)], digests(array))


def again(image: Image.Image, how: str) -> Image.Image:
    if how.startswith("jpeg"):
        data = io.BytesIO()
        image.save(data, "JPEG", quality=int(how[4:]))
        return Image.open(data)
    if how == "half":
        return image.resize((image.width // 2, image.height // 2), Image.Resampling.BILINEAR)
    if how == "brighter":
        return Image.fromarray(np.clip(np.asarray(image).astype(int) + 8, 0, 255).astype(np.uint8))
    if how == "contrast":
        return ImageEnhance.Contrast(image).enhance(0.9)
    return image.copy()


@pytest.mark.parametrize("how", ["jpeg75", "jpeg40", "half", "brighter", "contrast"])
def test_near_duplicates_are_detected_and_distinct_images_are_not(how: str) -> None:
    originals = [piece(160, i) for i in range(40)]
    copies = [again(p, how) for p in originals[:10]]
    result = near_duplicates(images(*originals, *copies))
    assert sorted(map(sorted, result)) == [[i, 40 + i] for i in range(10)]


@pytest.mark.parametrize(("side", "quality"), [(96, 80), (160, 85)])
def test_thumbnails_of_images_are_near_duplicates(side: int, quality: int, tmp_path: Path) -> None:
    """As a NAS or a camera makes them, next to the images."""
    for i in range(8):
        image = piece(200, i)
        image.save(tmp_path / f"{i}.jpg", quality=92)
        image.thumbnail((side, side))
        image.save(tmp_path / f"{i}_thumb.jpg", quality=quality)
    files = find_images(tmp_path)
    result = near_duplicates(decode_all(files, 64, "crop", "rgb").images())
    assert sorted(map(sorted, result)) == [[2 * i, 2 * i + 1] for i in range(8)]


def test_two_photos_of_the_same_object_are_not_near_duplicates() -> None:
    photo = piece(160, 0)
    shifted = photo.crop((16, 0, 160, 144)).resize((160, 160))
    negative = Image.fromarray(255 - np.asarray(photo))
    pale = ImageEnhance.Contrast(photo).enhance(0.5)
    assert near_duplicates(images(photo, shifted, negative, pale, photo.rotate(180))) == []


def test_near_duplicates_of_one_image_are_one_group() -> None:
    photo = piece(160, 3)
    kinds = ["jpeg90", "jpeg75", "half", "brighter"]
    result = near_duplicates(images(piece(160, 0), photo, *[again(photo, k) for k in kinds], piece(160, 2)))
    assert [sorted(g) for g in result] == [[1, 2, 3, 4, 5]]


def test_blank_images_are_not_near_duplicates_and_equal_images_are() -> None:
    blank = [Image.new("RGB", (64, 64), (i, i, i)) for i in range(0, 200, 10)]
    assert near_duplicates(images(*blank, blank[3], piece(64, 1), piece(64, 0), piece(64, 1))) == [[21, 23]]


def test_every_test_image_of_a_long_burst_is_matched_with_training() -> None:
    rng = np.random.default_rng(0)
    photo = np.asarray(piece(64, 5)).astype(float)
    frames = [Image.fromarray((photo + rng.normal(0, 4, photo.shape)).clip(0, 255).astype(np.uint8)) for _ in range(40)]
    frames[20:] = [again(f, "jpeg60") for f in frames[20:]]
    test = np.array([False] * 20 + [True] * 20)
    result = near_duplicates(images(*frames), test)
    leaked = {i for g in result if {bool(test[j]) for j in g} == {True, False} for i in g}
    assert leaked >= set(range(20, 40))


@pytest.mark.parametrize("n", [0, 1])
def test_near_duplicates_of_at_most_one_image(n: int) -> None:
    array = np.zeros((n, 8, 8, 3), dtype=np.uint8)
    assert near_duplicates(Images([torch.from_numpy(array)], digests(array))) == []


def test_near_duplicates_match_a_comparison_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    array = np.array([np.asarray(piece(32, i)) for i in range(60)] * 5)
    noise = rng.normal(0, rng.uniform(0.5, 8, (300, 1, 1, 1)), array.shape)
    array = np.clip(array + noise, 0, 255).astype(np.uint8)
    result = near_duplicates(Images([torch.from_numpy(array)], digests(array)))
    small = torch.nn.functional.interpolate(
        torch.from_numpy(array).permute(0, 3, 1, 2).float(), (16, 16), mode="bilinear", antialias=True
    ).flatten(1)
    small = small - small.mean(1, keepdim=True)
    contrast = small.std(1, unbiased=False)
    unit = torch.nn.functional.normalize(small)
    alike = (torch.cdist(unit, unit) < SAME) & ((contrast[:, None] / contrast).log().abs() < 0.2)
    pairs = {(i, j) for i, j in alike.nonzero().tolist() if i < j}
    assert 20 < len(pairs) < 600
    together = {(min(i, j), max(i, j)) for g in result for i in g for j in g if i != j}
    assert pairs <= together
    assert {i for p in pairs for i in p} == {i for g in result for i in g}


def test_exact_duplicates_have_the_same_bytes() -> None:
    assert exact_duplicates([b"a", b"b", b"a", b"", b"c", b"b", b"a", b""]) == [[0, 2, 6], [1, 5]]


def test_headers_have_format_mode_size_and_digest() -> None:
    photo = piece(60, 0).crop((0, 0, 60, 40))
    photo.save("a.png")
    photo.convert("CMYK").save("b.jpg")
    photo.convert("P").save("c.gif")
    Path("d.jpg").write_text("text")
    Path("e.png").write_bytes(Path("a.png").read_bytes())
    result = headers([f"{n}" for n in ("a.png", "b.jpg", "c.gif", "d.jpg", "missing.png", "e.png")])
    assert [(h.format, h.mode, h.width, h.height) for h in result] == [
        ("PNG", "RGB", 60, 40), ("JPEG", "CMYK", 60, 40), ("GIF", "P", 60, 40), ("", "", 0, 0), ("", "", 0, 0),
        ("PNG", "RGB", 60, 40),
    ]  # fmt: skip
    assert result[0].digest == result[5].digest != result[1].digest
    assert (len(result[3].digest), len(result[4].digest)) == (16, 0)


def test_processes_read_many_files_in_order(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sslrun.data import workers

    files = find_images(photos) * 5
    monkeypatch.setattr(workers, "WORTH_PROCESSES", 100)
    assert headers(files) == read_headers(files)


def test_the_contrast_of_near_duplicates_differs_by_at_most_a_quarter_either_way() -> None:
    photo = np.asarray(piece(64, 1)).astype(float)

    def enhanced(factor: float) -> Image.Image:
        return Image.fromarray((128 + (photo - 128) * 0.5 * factor).round().clip(0, 255).astype(np.uint8))

    for factor, expected in ((0.7, []), (0.85, [[0, 1]]), (1.18, [[0, 1]]), (1.4, [])):
        assert near_duplicates(images(enhanced(1), enhanced(factor))) == expected
        assert near_duplicates(images(enhanced(factor), enhanced(1))) == expected


def test_equal_images_of_both_splits_are_one_group_also_in_a_selection_of_images() -> None:
    photos = [piece(64, i) for i in (0, 1, 2, 1, 3, 1)]
    everything = images(piece(64, 9), *photos)
    selection = everything.take(np.arange(1, 7))
    assert near_duplicates(selection) == [[1, 3, 5]]
    assert near_duplicates(selection, np.array([False, False, False, True, False, True])) == [[1, 3, 5]]


def test_blank_images_with_a_little_noise_are_skipped() -> None:
    blank = np.full((64, 64, 3), 100, np.uint8)
    blank[::2] += 1
    copy = Image.fromarray(blank)
    assert near_duplicates(images(piece(64, 0), copy, copy, piece(64, 1))) == []


def test_many_files_are_read_in_order_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(70):
        Image.new("L", (i + 1, 1)).save(f"{i}.png")
    counted: list[int] = []
    monkeypatch.setattr(duplicates, "progress", lambda *_: nullcontext(counted.append))
    assert [h.width for h in headers([f"{i}.png" for i in range(70)])] == list(range(1, 71))
    assert sum(counted) == 70
