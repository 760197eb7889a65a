"""Every format of image file, intact and damaged."""

import hashlib
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from PIL import Image

from sslrun.data.decode import UnreadableImage, decode, decode_some, is_image, read_headers, to_rgb
from sslrun.data.tree import find_images
from tests.helpers import CHANGES, CUT, Changes, bounded, changed


@pytest.fixture
def photo(photos: Path) -> Image.Image:
    with Image.open(photos / "flower" / "flower 00.jpg") as image:
        return image.convert("RGB")


def save(image: Image.Image, name: str, **options: object) -> Path:
    image.save(name, **options)  # type: ignore[arg-type]
    return Path(name)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.webp", "a.gif", "a b=ü.jpg"])
def test_case_37_every_format_and_file_name_gives_the_same_image(photo: Image.Image, name: str) -> None:
    plain = np.asarray(photo.resize((20, 20), Image.Resampling.BILINEAR))
    assert difference(decode(save(photo, name), 20), plain) < 8


def test_case_31_cmyk(photo: Image.Image) -> None:
    assert difference(decode(save(photo.convert("CMYK"), "c.jpg", quality=95), 40), np.asarray(photo)) < 12


def test_case_32_sixteen_bit(photo: Image.Image) -> None:
    gray = np.asarray(photo.convert("L"))
    path = save(Image.fromarray(gray.astype(np.uint16) * 257), "deep.png")
    assert difference(decode(path, 40)[..., 0], gray) < 1.5
    dark = save(Image.fromarray((gray.astype(np.uint16) * 257) // 300), "dark.png")  # 16-bit, but all values below 256
    assert decode(dark, 40).max() <= 2


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_case_33_transparency_is_blended_with_white(mode: str) -> None:
    image = Image.new("RGBA", (10, 10), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 5, 10))
    if mode == "P":
        flat = Image.new("P", (10, 10), 1)
        flat.putpalette([0, 0, 0, 200, 0, 0])
        flat.paste(0, (0, 0, 5, 10))
        path = save(flat, "p.png", transparency=1)
    else:
        path = save(image.convert(mode), "t.png")
    pixels = decode(path, 10)
    assert (pixels[:, 6:] == 255).all()
    assert (pixels[:, :4] == 0).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_case_34_exif_orientation_is_applied(orientation: int) -> None:
    upright = Image.new("RGB", (40, 40), "white")
    upright.paste("black", (0, 0, 20, 10))
    undo = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270}  # fmt: skip
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert difference(decode(save(stored, "e.jpg", exif=exif, quality=95), 40), np.asarray(upright)) < 3


@pytest.mark.parametrize(
    ("values", "expected"), [((0.0, 1.0), (0, 255)), ((0.0, 255.0), (0, 255)), ((0, 65535), (0, 255))]
)
def test_floating_point_images_in_three_value_ranges(values: tuple[float, float], expected: tuple[int, int]) -> None:
    array = np.full((8, 8), values[0], dtype=np.float32)
    array[:, 4:] = values[1]
    pixels = decode(save(Image.fromarray(array), "f.tif"), 8, gray_range=values)
    assert (int(pixels.min()), int(pixels.max())) == expected


@pytest.mark.parametrize("mode", ["1", "L", "I;16", "RGB", "RGBA", "P", "CMYK", "YCbCr", "LAB", "I", "F"])
def test_every_tiff_mode_becomes_8_bit_rgb(photo: Image.Image, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    elif mode == "LAB":
        image = Image.merge("LAB", (photo.convert("L"), *[Image.new("L", photo.size, 128)] * 2))
    else:
        image = photo.convert(mode)
    gray_range = {"I": (0, 255), "F": (0, 255)}.get(mode)
    pixels = decode(save(image, "m.tif"), 40, gray_range=gray_range)
    assert (pixels.shape, pixels.dtype) == ((40, 40, 3), np.uint8)
    gray = np.asarray(photo.convert("L"))
    assert np.corrcoef(pixels.mean(2).ravel(), gray.ravel())[0, 1] > (
        0.4 if mode == "1" else 0.8
    )  # black and white is dithered


def test_case_35_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    frames[0].save("a.gif", save_all=True, append_images=frames[1:])
    assert decode(Path("a.gif"), 8)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
def test_case_36_extreme_aspect_ratios(size: tuple[int, int], resize: str) -> None:
    path = save(Image.new("RGB", size, "red"), "s.png")
    assert decode(path, 16, resize).shape == (16, 16, 3)  # type: ignore[arg-type]


def test_crop_and_pad_keep_the_aspect_ratio_and_squash_does_not() -> None:
    wide = Image.new("RGB", (80, 40), "black")
    wide.paste("white", (20, 0, 60, 40))  # a white square in the middle
    path = save(wide, "w.png")
    assert (decode(path, 20, "crop")[:, 1:-1] == 255).all()
    padded = decode(path, 20, "pad")
    assert (padded[0] == 128).all()
    assert (padded[10, 6:14] == 255).all()
    squashed = decode(path, 20, "squash")
    assert (squashed[10, :4] == 0).all()
    assert (squashed[:, 8:12] == 255).all()


def test_gray_repeats_the_luminance_in_three_channels(photo: Image.Image) -> None:
    pixels = decode(save(photo, "g.png"), 40, channels="gray")
    assert (pixels[..., 0] == pixels[..., 2]).all()
    assert difference(pixels[..., 0], np.asarray(photo.convert("L"))) < 1


def broken(photo: Image.Image) -> dict[str, Path]:
    data = io.BytesIO()
    photo.save(data, "JPEG")
    Path("truncated.jpg").write_bytes(data.getvalue()[: len(data.getvalue()) // 2])
    Path("empty.jpg").write_bytes(b"")
    Path("text.jpg").write_text("I am not an image")
    Path("folder.jpg").mkdir()
    return {n: Path(f"{n}.jpg") for n in ("truncated", "empty", "text", "missing", "folder")}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("truncated", "damaged"),
        ("empty", "empty"),
        ("text", "not an image"),
        ("missing", "no such"),
        ("folder", "folder"),
    ],
)
def test_cases_27_to_29_broken_files_give_a_reason(photo: Image.Image, kind: str, words: str) -> None:
    with pytest.raises(UnreadableImage, match=words):
        decode(broken(photo)[kind], 16)


def test_case_30_a_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (20_000, 20_000)).save("bomb.png")  # 400 million pixels in 50 kB
    with pytest.raises(UnreadableImage, match="too many pixels"):
        decode(Path("bomb.png"), 16)


def test_case_38_links_are_followed_and_loops_are_not(photos: Path) -> None:
    Path("top").mkdir()
    os.symlink(photos / "flower", "top/linked")
    os.symlink(Path("top").resolve(), "top/loop")
    assert len(find_images(Path("top"))) == 30


def test_case_46_the_order_of_files_does_not_depend_on_the_machine(photos: Path) -> None:
    code = "import sys; from pathlib import Path; from sslrun.data.tree import find_images\n"
    code += "print(find_images(Path(sys.argv[1])))"
    answer = {
        subprocess.run(
            [sys.executable, "-c", code, str(photos)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "LC_ALL": locale, "PYTHONHASHSEED": "1"},
        ).stdout
        for locale in ("C", "C.UTF-8")
    }
    assert len(answer) == 1


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "tif", "bmp"])
def test_random_file_content_gives_an_image_or_a_reason(photo: Image.Image, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a flower"
    options: dict[str, object] = {} if suffix in ("gif", "bmp") else {"exif": exif}
    data = save(photo, f"whole.{suffix}", **options).read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for i in range(150):
        damaged = bytearray(data)
        near = len(data) if i % 2 else min(300, len(data))  # damages the header more often
        for at in rng.integers(0, near, rng.integers(1, 12)):
            damaged[at] = rng.integers(256)
        Path(f"x.{suffix}").write_bytes(bytes(damaged[: len(data) if i % 3 else int(rng.integers(1, len(data)))]))
        try:
            assert decode(f"x.{suffix}", 16).shape == (16, 16, 3)
        except UnreadableImage:
            refused += 1
    assert refused > 0


def test_only_supported_formats_are_read(photo: Image.Image) -> None:
    photo.save("a.eps")
    photo.save("b.ppm")
    for name in ("a.eps", "b.ppm"):
        Path(name).rename(f"{name}.jpg")
        with pytest.raises(UnreadableImage, match="not an image in a supported format"):
            decode(f"{name}.jpg", 16)


def test_the_first_image_of_a_multi_image_jpeg_is_read(photo: Image.Image) -> None:
    photo.save("phone.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (40, 40), "red")], quality=95)
    assert difference(decode("phone.jpg", 40), np.asarray(photo)) < 5
    assert difference(decode("phone.jpg", 8), np.asarray(photo.resize((8, 8), Image.Resampling.BOX))) < 12


def test_a_link_to_a_parent_folder_is_not_followed(photos: Path) -> None:
    for name in ("a", "b"):
        Path("top", name).mkdir(parents=True)
        shutil.copy(photos / "flower/flower 00.jpg", f"top/{name}/x.jpg")
    os.symlink(Path("top").resolve(), "top/a/loop")
    assert find_images("top/a") == ["top/a/x.jpg"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes a pipe")
def test_a_pipe_does_not_block() -> None:
    os.mkfifo("x.jpg")
    with pytest.raises(UnreadableImage, match="not a file"):
        decode("x.jpg", 8)
    assert read_headers(["x.jpg"])[0].format == ""


def test_nan_and_infinity_do_not_change_the_value_range() -> None:
    array = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    array[0, 0] = np.nan
    pixels = decode(save(Image.fromarray(array), "f.tif"), 8, gray_range=(0, 1))
    assert pixels.max() == 255


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "bmp", "tif"])
def test_any_file_with_an_image_suffix_gives_an_image_or_a_reason(suffix: str) -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8))
    photo.save(f"whole.{suffix}")
    data = Path(f"whole.{suffix}").read_bytes()

    @bounded(150)
    @given(CHANGES, CUT)
    def check(changes: Changes, part: float | None) -> None:
        Path(f"x.{suffix}").write_bytes(changed(data, changes, part))
        try:
            assert decode(f"x.{suffix}", 16).shape == (16, 16, 3)
        except UnreadableImage as reason:
            assert str(reason)

    check()


def striped(width: int, height: int) -> Image.Image:
    """Return an image of three bands along its longer side: red, green and blue, with the middle a square."""
    pixels = np.zeros((height, width, 3), np.uint8)
    side, longer = sorted((width, height))
    first, last = (longer - side) // 2, (longer + side) // 2
    along = pixels if height > width else pixels.transpose(1, 0, 2)
    along[:first, :, 0], along[first:last, :, 1], along[last:, :, 2] = 255, 255, 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(96, 32), (32, 96), (40, 32), (32, 40), (600, 200), (200, 600)])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_crop_keeps_the_middle_of_wide_and_of_tall_images(size: tuple[int, int], suffix: str) -> None:
    striped(*size).save(f"a.{suffix}", quality=95)
    inside = decode(Path(f"a.{suffix}"), 16)[2:-2, 2:-2].reshape(-1, 3).astype(int)
    assert np.abs(inside - [0, 255, 0]).max() < 30


@pytest.mark.parametrize("size", [(96, 32), (32, 96)])
def test_padding_leaves_the_image_in_the_middle(size: tuple[int, int]) -> None:
    striped(*size).save("a.png")
    pixels = decode(Path("a.png"), 30, "pad")
    along = pixels if size[1] > size[0] else pixels.transpose(1, 0, 2)  # the long side down, the border left and right
    assert (along[:, :9] == 128).all()
    assert (along[:, -9:] == 128).all()
    assert [along[i, 15].argmax() for i in (3, 15, 26)] == [0, 1, 2]


@pytest.mark.parametrize("size", [(96, 32), (32, 96)])
def test_squashing_keeps_all_of_the_image(size: tuple[int, int]) -> None:
    striped(*size).save("a.png")
    pixels = decode(Path("a.png"), 30, "squash")
    along = pixels if size[1] > size[0] else pixels.transpose(1, 0, 2)
    assert [along[i].argmax(1).tolist() for i in (3, 15, 26)] == [[0] * 30, [1] * 30, [2] * 30]


def test_values_outside_the_range_and_small_integers_are_not_stretched() -> None:
    floats = np.array([[-5.0, 0.0, 0.5, 1.0, np.inf, -np.inf]], np.float32)
    assert to_rgb(Image.fromarray(floats), (0, 1))[0].tobytes()[::3] == bytes([0, 0, 127, 255, 0, 0])
    integers = np.array([[-5, 0, 1, 1]], np.int32)  # of 255
    assert to_rgb(Image.fromarray(integers), (0, 255))[0].tobytes()[::3] == bytes([0, 0, 1, 1])
    deep = np.array([[-5, 0, 257, 65535, 70000]], np.int32)  # of 65,535
    assert to_rgb(Image.fromarray(deep), (0, 65535))[0].tobytes()[::3] == bytes([0, 0, 1, 255, 255])


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA"])
def test_half_transparent_black_is_gray_and_transparent_black_white(mode: str) -> None:
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 127))
    image.putpixel((2, 0), (0, 0, 0, 0))
    image = image.convert(mode)
    assert image.mode == mode
    assert np.asarray(to_rgb(image, None)[0])[0].tolist() == [[v] * 3 for v in (0, 128, 255)]


def test_too_little_memory_is_a_reason_that_may_not_hold_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    Path("a.png").touch()
    monkeypatch.setattr(Image, "open", full)
    with pytest.raises(UnreadableImage, match="cannot be opened: not enough memory"):
        decode("a.png", 8)


def test_several_files_are_decoded_with_the_settings_given() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save("a.png")
    Image.fromarray(noise[::-1]).save("b.png")
    seen = set()
    for resize in ("crop", "pad", "squash"):
        for channels in ("rgb", "gray"):
            block, reasons, outside = decode_some(["a.png", "none.png", "b.png"], 8, resize, channels, None)
            assert (block[0] == decode("a.png", 8, resize, channels)).all()
            assert (block[2] == decode("b.png", 8, resize, channels)).all()
            assert not block[1].any()
            assert reasons == ["", "no such file", ""]
            assert outside == [0, 0, 0]
            seen.add(block.tobytes())
    assert len(seen) == 6


def test_suffixes_of_images_are_recognized_in_any_case() -> None:
    assert all(is_image(f"a b.{s}") for s in ("jpg", "JPEG", "Png", "webp", "bmp", "gif", "tif", "TIFF"))
    assert not any(is_image(n) for n in ("jpg", "a.dng", "a.jpg.txt", "a"))


def test_a_header_has_width_and_height_and_a_file_that_is_no_image_a_digest() -> None:
    Image.new("L", (5, 3)).save("a.png")
    Path("b.png").write_text("text")
    Path("c.png").write_text("another text")
    image, text, other, missing = read_headers(["a.png", "b.png", "c.png", "none.png"])
    assert (image.format, image.mode, image.width, image.height) == ("PNG", "L", 5, 3)
    assert len({image.digest, text.digest, other.digest}) == 3
    assert image.digest == hashlib.blake2b(Path("a.png").read_bytes(), digest_size=16).digest()
    assert missing == (b"", "", "", 0, 0, "")


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
@pytest.mark.parametrize("exif", [b"garbage!", b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x05\x01", b""])
def test_a_damaged_exif_block_is_no_damaged_image(photo: Image.Image, suffix: str, exif: bytes) -> None:
    photo.save(f"sound.{suffix}")
    photo.save(f"x.{suffix}", exif=exif)
    assert np.array_equal(decode(f"x.{suffix}", 16), decode(f"sound.{suffix}", 16))


FORMATS = {"jfif": "JPEG", "jpe": "JPEG", "avif": "AVIF", "heic": "HEIF"}


@pytest.mark.parametrize("suffix", FORMATS)
def test_less_common_suffixes_and_formats_are_read(photo: Image.Image, suffix: str) -> None:
    if suffix == "heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    Path("a").mkdir()
    photo.save(f"a/x.{suffix}", FORMATS[suffix])
    assert find_images("a") == [f"a/x.{suffix}"]
    assert difference(decode(f"a/x.{suffix}", photo.width), np.asarray(photo.resize((photo.width, photo.width)))) < 30


def test_a_format_that_is_not_read_says_what_to_do() -> None:
    Path("x.dng").write_bytes(b"II*\x00\x08\x00")
    with pytest.raises(UnreadableImage, match="not an image in a supported format; convert it to JPEG or PNG"):
        decode("x.dng", 16)
