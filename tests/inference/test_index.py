"""Features that are cached between commands."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

import sslrun
from sslrun.data.decode import find_images
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
    config = {"dataset": {"image_size": 32, "resize": "crop", "channels": "rgb"}}
    model = Model(Trained(small_encoder((4, 8)), config, Path("best.pt")), CPU)
    files = find_images(few_photos)
    for _ in range(2):  # the second time from the cache
        for stage, width in ((1, 4), (2, 8)):
            assert indexed(model, files, stage, 8)[1].shape == (12, width)
