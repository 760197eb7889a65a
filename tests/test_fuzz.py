"""Input from outside, changed at random: it is read, or refused in one line; nothing else happens.

`make test` tries a few hundred of each kind, always the same ones; SSLRUN_FUZZ=20 tries twenty times as many, others
each time. What was found once stands here as an `@example` for good.
"""

import io
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from sslrun.base.errors import UserError
from sslrun.config.overrides import check_overrides
from sslrun.data.decode import UnreadableImage, decode
from sslrun.data.fetch import _unpack, explained
from sslrun.runs import checkpoint
from sslrun.stages.table import settings as settings_named

TIMES = int(os.environ.get("SSLRUN_FUZZ", "1"))
SUPPRESSED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def bounded(examples: int) -> settings:
    return settings(
        max_examples=examples * TIMES,
        deadline=None,
        derandomize=TIMES == 1,
        database=None,
        suppress_health_check=SUPPRESSED,
    )


Changes = list[tuple[float, int]]
CHANGES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8)
PART = st.one_of(st.none(), st.floats(0, 1))  # of a file that is left


def changed(data: bytes, changes: Changes, part: float | None) -> bytes:
    """Set some bytes, given by their place from 0 to 1, and cut the file off."""
    out = bytearray(data)
    for place, value in changes:
        out[int(place * len(out))] = value
    return bytes(out if part is None else out[: int(part * len(out))])


# ------------------------------------------------------------------------------------------------------- overrides

WORDS = [
    "pretext", "simclr", "train", ".steps", ".batch_size", "backbone", ".widths", "dataset", ".root", "device", "seed",
    "=", "==", ",", "[", "]", "{", "}", "(", ")", "'", '"', "\\", "$", "${", "}", "~", "+", "++", "@", ":", "/", " ",
    "null", "true", "1", "-1", "0.5", "1e400", "nan", "choice(", "range(", "glob(", "*", "é", "\x00", "\n", "oc.env:X",
    "hydra", ".run.dir", "_target_", "???",
]  # fmt: skip


@bounded(60)
@given(st.lists(st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=3)), max_size=6).map("".join), max_size=3))
@example(["dataset.root=${oc.env:X}"])
@example(["seed=[1,{a:2}]", "~seed"])
@example(["train={}"])
def test_any_override_is_taken_or_refused_in_words(overrides: list[str]) -> None:
    for multirun in (False, True):
        try:
            check_overrides("pretrain", settings_named("pretrain"), overrides, None, multirun)
        except UserError as error:
            assert str(error).strip()


# ------------------------------------------------------------------------------------------------------ checkpoints


def checkpoint_bytes() -> bytes:
    path = Path("whole.pt")
    model = {"encoder.weight": torch.arange(60.0), "encoder.count": torch.tensor(3)}
    config = {"backbone": {"_target_": "sslrun.models.backbones.smallcnn.smallcnn", "widths": [8]}}
    checkpoint.save(path, {"model": model, "config": config, "step": 3})
    return path.read_bytes()


@bounded(300)
@given(CHANGES, PART)
def test_any_file_is_a_checkpoint_or_refused_in_words(changes: Changes, part: float | None) -> None:
    data = checkpoint_bytes()
    Path("x.pt").write_bytes(changed(data, changes, part))
    try:
        result = checkpoint.load(Path("x.pt"))
    except UserError as error:
        assert str(error).startswith("x.pt")
        return
    assert result["model"]["encoder.weight"].tolist() == list(range(60))


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5) | st.just("_target_"), inner, max_size=3)
    ),
    max_leaves=5,
)


@bounded(200)
@given(st.dictionaries(st.sampled_from(["model", "config", "class_names", "step", "state_dict"]), VALUES))
def test_any_content_is_a_checkpoint_or_refused_in_words(content: dict[str, object]) -> None:
    torch.save({checkpoint.OURS: "0.1.0", **content}, "x.pt")
    try:
        result = checkpoint.load(Path("x.pt"))
    except UserError as error:
        assert str(error).startswith("x.pt")
        return
    assert all(isinstance(v, torch.Tensor) for v in result.get("model", {}).values())


# --------------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "bmp", "tif"])
def test_any_picture_file_is_a_picture_or_gives_a_reason(suffix: str) -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8))
    photo.save(f"whole.{suffix}")
    data = Path(f"whole.{suffix}").read_bytes()

    @bounded(150)
    @given(CHANGES, PART)
    def check(changes: Changes, part: float | None) -> None:
        Path(f"x.{suffix}").write_bytes(changed(data, changes, part))
        try:
            assert decode(f"x.{suffix}", 16).shape == (16, 16, 3)
        except UnreadableImage as reason:
            assert str(reason)

    check()


# --------------------------------------------------------------------------------------------------------- archives


def tar_of(names: list[str], kind: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = (3 if kind == tarfile.REGTYPE else 0), kind, "../../outside"
            tar.addfile(info, io.BytesIO(b"abc"))
    return out.getvalue()


def zip_of(names: list[str], kind: bytes) -> bytes:
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


@pytest.mark.parametrize("pack", [tar_of, zip_of])
def test_any_archive_stays_in_its_folder(pack: Callable[[list[str], bytes], bytes]) -> None:
    @bounded(200)
    @given(
        st.lists(NAMES, min_size=1, max_size=3),
        st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE]),
        CHANGES,
        PART,
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
