"""Gray images of more than 8 bits: their kinds and values, and what of a TIFF is not read."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sslrun.data.decode import UnreadableImage, decode, opened, read, read_headers, to_rgb
from sslrun.data.depth import clipped_text, kind, scaled, values
from tests.tiffs import write_tiff

STEPS = np.arange(64).reshape(8, 8)


def read_values(path: str) -> tuple[str, np.ndarray]:
    with opened(path) as image:
        image.load()
        of = kind(image)
        assert of is not None
        return str(of), values(image, of)


@pytest.mark.parametrize(
    ("type_", "factor", "offset", "expected"),
    [
        ("<u2", 1000, 0, "16 bits"),
        (">u2", 1000, 0, "16 bits"),
        ("<i2", 800, -20000, "16 bits (signed)"),
        (">i2", 800, -20000, "16 bits (signed)"),
        ("<u4", 60_000_000, 0, "32 bits"),  # more than signed integers have
        ("<i4", 30_000_000, -(10**9), "32 bits (signed)"),
        (">i4", 30_000_000, -(10**9), "32 bits (signed)"),
        ("<f4", 0.25, -3, "32 bits (float)"),
        (">f4", 0.25, -3, "32 bits (float)"),
    ],
)
def test_the_values_of_a_tiff_are_those_that_were_written(
    type_: str, factor: float, offset: float, expected: str
) -> None:
    array: np.ndarray = (STEPS * factor + offset).astype(type_)
    of, found = read_values(write_tiff("a.tif", array))
    assert of == expected
    assert np.array_equal(found, array.astype(np.float64))
    low, high = float(found.min()), float(found.max())
    pixels = decode("a.tif", 8, gray_range=(low, high))[..., 0]
    assert np.abs(pixels - STEPS * (255 / 63)).max() <= 0.5 + 1e-5


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_in_which_0_is_white_is_inverted_at_any_depth(order: str) -> None:
    if order == "<":  # Pillow does not read the other
        deep = write_tiff("deep.tif", (STEPS * 1000).astype("<u2"), photometric=0)
        assert np.array_equal(read_values(deep)[1], 65535 - STEPS * 1000)
    floats = write_tiff("floats.tif", (STEPS / 63).astype(order + "f4"), photometric=0)
    assert decode(floats, 8, gray_range=(-1, 0))[..., 0].ravel()[[0, -1]].tolist() == [255, 0]
    flat = write_tiff("flat.tif", (STEPS * 4).astype(order + "u1"), photometric=0)  # Pillow inverts it
    assert np.array_equal(decode(flat, 8)[..., 0], 255 - STEPS * 4)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate"])
@pytest.mark.parametrize("type_", [np.uint16, np.int32, np.float32])
def test_a_compressed_tiff_has_the_same_values(compression: str, type_: type) -> None:
    array: np.ndarray = (STEPS * 100).astype(type_)
    Image.fromarray(array).save("a.tif", compression=compression)
    assert np.array_equal(read_values("a.tif")[1], array)


@pytest.mark.parametrize("type_", ["<u2", ">u2", "<i2", ">i2", "<u4", "<i4", ">i4", "<f4", ">f4"])
def test_a_compressed_tiff_has_its_values_or_a_reason_where_pillow_mixes_up_their_bytes(type_: str) -> None:
    array: np.ndarray = (STEPS * 100).astype(type_)
    path = write_tiff("a.tif", array, compressed=True)
    try:
        assert np.array_equal(read_values(path)[1], array.astype(np.float64))
    except UnreadableImage as reason:
        assert type_ in (">i2", ">i4", ">f4")
        assert str(reason).startswith("big-endian TIFF of ")
        assert str(reason).endswith("): not read; save it without compression")
        with pytest.raises(UnreadableImage, match="save it without compression"):
            decode(path, 8, gray_range=(0, 6300))


def test_a_png_of_16_bits_and_one_of_8() -> None:
    Image.fromarray((STEPS * 1000).astype(np.uint16)).save("deep.png")
    Image.fromarray((STEPS * 4).astype(np.uint8)).save("flat.png")
    assert read_values("deep.png")[0] == "16 bits"
    assert np.array_equal(read_values("deep.png")[1], STEPS * 1000)
    assert [h.kind for h in read_headers(["deep.png", "flat.png", "none.png"])] == ["16 bits", "", ""]
    assert np.array_equal(decode("flat.png", 8, gray_range=(0, 7))[..., 0], STEPS * 4)  # 8 bits stay as they are


def test_257_times_a_value_of_16_bits_is_the_value_and_a_255th_of_a_float_too() -> None:
    every = np.arange(256)
    assert np.array_equal(scaled((257 * every).astype(np.float32), (0, 65535))[0], every)
    assert np.array_equal(scaled((every / 255).astype(np.float32), (0, 1))[0], every)
    assert np.array_equal(scaled(every.astype(np.float64) * 16843009, (0, 2**32 - 1))[0], every)


def test_values_outside_are_clipped_and_counted_and_nan_is_black_and_is_not() -> None:
    gray = np.array([[-1, 0, 0.5, 1], [1.5, np.nan, np.inf, -np.inf]], np.float32)
    pixels, outside = scaled(gray, (0, 1))
    assert pixels.tolist() == [[0, 0, 127, 255], [255, 0, 0, 0]]
    assert outside == 2 / 8
    assert scaled(np.array([[-3e38, 3e38]], np.float32), (-1, 1))[0].tolist() == [[0, 255]]  # nothing overflows


def test_the_fraction_outside_is_returned_with_the_pixels() -> None:
    path = write_tiff("a.tif", (STEPS * 100).astype("<u2"))
    assert read(path, 4, "crop", "rgb", (0, 3100))[1] == 0.5
    assert read(path, 4, "crop", "rgb", (0, 65535))[1] == 0
    Image.fromarray((STEPS * 4).astype(np.uint8)).save("flat.png")
    assert read("flat.png", 4, "crop", "rgb", (0, 3))[1] == 0


@pytest.mark.parametrize(
    ("array", "photometric", "expected"),
    [
        (np.zeros((8, 8, 3), "<f4"), 2, "3 x 32-bit float"),
        (np.zeros((8, 8, 2), "<u2"), 1, "2 x 16-bit"),  # gray and alpha
        (np.zeros((8, 8, 5), ">u2"), 1, "5 x 16-bit, big-endian"),
        (np.zeros((8, 8), "<f8"), 1, "64-bit float"),
        (np.zeros((8, 8), "<f2"), 1, "16-bit float"),
        (np.zeros((8, 8), "<c8"), 1, "64-bit complex"),
        (np.zeros((8, 8), ">i4"), 0, "32-bit signed, 0 is white, big-endian"),
        (np.zeros((8, 8), ">u2"), 0, "16-bit, 0 is white, big-endian"),
        (np.zeros((8, 8), ">u4"), 1, "32-bit, big-endian"),
    ],
)
def test_the_kind_of_a_tiff_that_is_not_read_is_in_the_reason(
    array: np.ndarray, photometric: int, expected: str
) -> None:
    write_tiff("a.tif", array, photometric)
    with pytest.raises(UnreadableImage) as error:
        decode("a.tif", 8, gray_range=(0, 1))
    gray = "16-bit gray in which 0 is black" if photometric == 0 else "16-bit gray"
    assert str(error.value) == f"TIFF of {expected}: not read; convert it to {gray} or 8-bit color"


def test_a_file_that_is_no_tiff_is_none_of_a_kind() -> None:
    whole = Path(write_tiff("a.tif", np.zeros((8, 8, 3), "<f4"), 2)).read_bytes()
    for content in (b"text", whole[:40], b"II*\0" + bytes(30), b"II+\0\x08\0\0\0"):
        Path("b.tif").write_bytes(content)
        with pytest.raises(UnreadableImage, match=r"not an image in a supported format$|damaged"):
            decode("b.tif", 8)


def test_without_a_range_16_bits_are_read_as_before_and_other_kinds_have_a_reason() -> None:
    path = write_tiff("a.tif", (STEPS * 257).astype("<u2"))
    assert np.array_equal(decode(path, 8)[..., 0], STEPS)
    for type_, words in (("<f4", "32 bits (float)"), ("<i4", "32 bits (signed)"), ("<u4", "32 bits,")):
        with pytest.raises(UnreadableImage) as error:
            decode(write_tiff("b.tif", STEPS.astype(type_)), 8)
        assert words in str(error.value)
        assert "there is no dataset.range to read it with; convert it to 8 bits" in str(error.value)


def test_an_image_in_memory_of_mode_i_is_signed() -> None:
    image, outside = to_rgb(Image.fromarray(np.array([[-100, 0, 100, 200]], np.int32)), (-100, 100))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 127, 255, 255]
    assert outside == 0.25


def test_the_sentence_on_values_outside() -> None:
    sentence = clipped_text([0, 0.5, 0.25, 0], [0, 1], 4, " in train")
    assert sentence == "2 of 4 images in train have values outside dataset.range=[0,1] (38 % of their values), clipped"
    assert clipped_text([0.001], [-2.5, 4095], 1).startswith(
        "1 of 1 image has values outside dataset.range=[-2.5,4095]"
    )
    assert clipped_text([0, 0], [0, 1], 2) == ""


def test_floats_between_0_and_1_are_not_read_with_a_range_of_whole_numbers(tmp_path: Path) -> None:
    """They would be black: in a data set with 16-bit images, or in `predict` of a network for these."""
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "unit.tif")
    Image.fromarray(values * 0).save(tmp_path / "blank.tif")
    Image.fromarray(values * 4095).save(tmp_path / "counts.tif")
    message = "values of 0 to 1, but dataset.range is 0 to 4095: convert the image"
    with pytest.raises(UnreadableImage, match=message):
        decode(tmp_path / "unit.tif", 8, gray_range=[0, 4095])
    assert decode(tmp_path / "unit.tif", 8, gray_range=[0, 1]).max() == 255
    assert decode(tmp_path / "blank.tif", 8, gray_range=[0, 4095]).max() == 0
    assert decode(tmp_path / "counts.tif", 8, gray_range=[0, 4095]).max() == 255
