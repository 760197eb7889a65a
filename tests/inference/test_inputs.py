"""Images as files, PIL images, arrays and tensors."""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sslrun
from sslrun.base.errors import UserError
from sslrun.inference.inputs import decoded_one, named_images
from tests.helpers import QUICK, Cli


def test_an_image_in_memory_is_not_changed(in_world: Path, photo_files: list[str], tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90 degrees
    large = Image.open(photo_files[0]).resize((600, 400))
    large.save("large.jpg", exif=exif)
    image = Image.open("large.jpg")
    model = sslrun.load(device="cpu")
    assert model.predict(image)[0].error is None
    assert image.size == (600, 400)
    assert image.getexif()[0x0112] == 6
    assert np.allclose(model.probabilities(image), model.probabilities("large.jpg"), atol=0.05)  # decoded small there
    cut = Path(photo_files[0]).read_bytes()[:-300]
    Path("cut.jpg").write_bytes(cut)
    assert "damaged" in (model.predict([Image.open("cut.jpg")])[0].error or "")
    with pytest.raises(UserError, match="damaged"):
        model.embed([Image.open("cut.jpg")])


def test_invalid_images_and_arguments_are_reported(in_world: Path) -> None:
    model = sslrun.load(device="cpu")
    for bad in (np.zeros((0, 0, 3), np.uint8), np.zeros((5, 0), np.uint8), None, b"a.jpg", 3):
        with pytest.raises(UserError, match="is not an image"):
            model.predict([bad])  # type: ignore[list-item]
    for values in (torch.rand(3, 9, 9) * 255, torch.full((3, 9, 9), torch.nan)):
        with pytest.raises(UserError, match=r"float tensor must have values in \[0, 1\]"):
            model.predict([values])
    for key in ("top", "views", "batch_size"):
        with pytest.raises(UserError, match=f"{key}=0: must be an integer"):
            model.predict([torch.rand(3, 9, 9)], **{key: 0})


def test_an_unknown_device_and_no_names_are_reported(in_world: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="device=gpu: no such device; expected one of auto, cpu, cuda"):
        sslrun.load(device="gpu")
    for stage in ("predict", "embed", "suggest"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
        answer = cli(stage, "-", *QUICK)
        assert answer.code == 1
        assert "no images named on standard input" in answer.err


def test_images_in_memory_and_files_give_the_same_probabilities(in_world: Path, photos: Path) -> None:
    model = sslrun.load()
    file = sorted(photos.rglob("*.jpg"))[0]
    with Image.open(file) as opened:
        image = opened.convert("RGB").resize((32, 32))  # so that the decoder does not shrink it
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    ways: list[Any] = [image, array, tensor, tensor.float() / 255]
    p = model.probabilities(ways)
    assert np.abs(p - p[0]).max() < 1e-6
    assert model.probabilities(image).shape == (1, 2)
    assert model.predict(file)[0].image == str(file)
    assert model.predict([]) == []
    mixed = model.predict([image, "nowhere.jpg", file])
    assert [m.error for m in mixed] == [None, "no such file", None]
    with pytest.raises(UserError, match=r"nowhere\.jpg: no such file"):
        model.embed(["nowhere.jpg"])
    with pytest.raises(UserError, match="is not an image: expected uint8, H x W x 3"):
        model.predict(np.zeros((4, 4, 7), np.uint8))


OPTIONS: dict[str, Any] = {"image_size": 4, "resize": "squash", "channels": "rgb", "gray_range": None}


def colored(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_tensors_and_arrays_of_every_kind_become_the_same_pixels() -> None:
    array = colored(4, 4)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    gray = np.repeat(array[:, :, :1], 3, 2)
    opaque = np.concatenate([array, np.full((4, 4, 1), 255, np.uint8)], 2)
    clear = np.concatenate([array, np.zeros((4, 4, 1), np.uint8)], 2)
    cases: list[tuple[Any, np.ndarray]] = [
        (Image.fromarray(array), array),
        (array, array),
        (tensor, array),
        ((tensor.double() / 255 - 1e-4).clamp(min=0), array),  # rounded to the nearest
        (array[:, :, 0], gray),
        (array[:, :, :1], gray),
        (tensor[0], gray),
        (tensor[:1], gray),
        (opaque, array),
        (clear, np.full_like(array, 255)),
    ]
    for item, expected in cases:
        pixels, reason, outside = decoded_one(item, OPTIONS)
        assert (reason, outside) == ("", 0)
        assert np.array_equal(pixels, expected)


def test_images_in_memory_are_resized_as_configured_and_not_transposed() -> None:
    """A wide image whose left half is red."""
    array = np.zeros((4, 16, 3), np.uint8)
    array[:, :8, 0] = 200
    for item in (array, torch.from_numpy(array).permute(2, 0, 1), Image.fromarray(array)):
        squashed = decoded_one(item, OPTIONS)[0]
        assert (squashed[:, 0] == [200, 0, 0]).all()
        assert (squashed[:, 3] == 0).all()
        padded = decoded_one(item, {**OPTIONS, "resize": "pad"})[0]
        assert (padded[0] == 128).all()
        gray = decoded_one(item, {**OPTIONS, "channels": "gray"})[0]
        assert (gray[:, 0] == 60).all()


def test_a_file_or_image_that_cannot_be_decoded_has_a_reason_and_black_pixels() -> None:
    Image.fromarray(colored(64, 64)).save("whole.png")
    Path("cut.png").write_bytes(Path("whole.png").read_bytes()[:5000])
    for item, words in (("nowhere.png", "no such file"), ("cut.png", "damaged"), (Image.open("cut.png"), "damaged")):
        pixels, reason, _ = decoded_one(item, OPTIONS)
        assert words in reason
        assert pixels.shape == (4, 4, 3)
        assert not pixels.any()
    assert decoded_one(Path("whole.png"), OPTIONS)[1] == ""


@pytest.mark.parametrize(
    "bad", [np.zeros((3, 4, 2), np.uint8), np.zeros((1, 3, 4, 3), np.uint8), np.zeros(5, np.uint8), np.zeros((4, 4, 3))]
)
def test_arrays_that_are_no_image_are_reported_with_their_shape(bad: np.ndarray) -> None:
    shape = " x ".join(map(str, bad.shape))
    with pytest.raises(UserError, match=f"an array of {bad.dtype}, {shape}, is not an image"):
        decoded_one(bad, OPTIONS)


def test_names_are_files_folders_and_standard_input_in_the_given_order(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b/2.png", "b/deep/1.jpg", "b/no.txt", "home/3.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    monkeypatch.setenv("HOME", str(Path("home").resolve()))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"z z.png\r\n\nb\nm\xff.png\n~/3.png")))
    inside = ["b/2.png", "b/deep/1.jpg"]
    home = str(Path("home/3.png").resolve())
    assert named_images(["x.png", "-", "a.txt"]) == ["x.png", "z z.png", *inside, "m\udcff.png", home, "a.txt"]
    assert named_images(["b", "b/2.png"]) == [*inside, "b/2.png"]
    Path("empty").mkdir()
    with pytest.raises(UserError, match="no images in empty "):
        named_images(["x.png", "empty"])
    with pytest.raises(UserError, match="no images given"):
        named_images([])
