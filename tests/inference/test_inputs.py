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
