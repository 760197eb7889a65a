"""`sslrun data preview`."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sslrun.data.decode import decode
from sslrun.stages import preview
from tests.helpers import BACKBONES, Cli, folder_node, make_task, source_node


@pytest.mark.parametrize(("pretext", "columns"), [("rotation", 6), ("simclr", 4), ("jigsaw", 3)])
def test_preview_draws_the_file_the_image_and_its_views(pretext: str, columns: int, photos: Path, cli: Cli) -> None:
    where = ("dataset=folder", f"dataset.root={photos}", "dataset.image_size=32")
    answer = cli("data", "preview", *where, f"pretext={pretext}", "images=4")
    assert answer.code == 0, answer.err
    with Image.open(answer.out.strip()) as image:
        width, height = image.size
        assert width / height == pytest.approx((1.2 * columns) / (1.2 * 4 + 0.3), rel=0.02)
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 1000


def test_preview_refuses_what_pretrain_refuses(cli: Cli) -> None:
    for command in (("data", "preview"), ("pretrain",)):
        answer = cli(*command, "dataset=digits", "pretext=moco", "pretext.queue=2000")
        assert answer.code == 1
        assert answer.err.splitlines()[-1] == "sslrun: pretext.queue=2000 is longer than the data set: at most 1438"


def test_previews_of_arrays_depend_on_the_seed_only(cli: Cli) -> None:
    drawn = [Path(cli("data", "preview", "dataset=digits", f"seed={s}").out.strip()).read_bytes() for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_preview_skips_unreadable_files_and_reads_no_test_images(photos: Path, cli: Cli) -> None:
    Path("set/train/a").mkdir(parents=True)
    Path("set/train/a/bad.jpg").write_text("x")
    shutil.copy(photos / "flower/flower 00.jpg", "set/train/a/good.jpg")
    Path("set/test/a").mkdir(parents=True)
    Path("set/test/a/worse.jpg").write_text("x")
    where = ("dataset=folder", "dataset.root=set")
    answer = cli("data", "preview", *where)
    assert answer.code == 0
    assert "Skipped set/train/a/bad.jpg" in answer.err
    assert "worse" not in answer.err
    Path("set/train/a/good.jpg").unlink()
    answer = cli("data", "preview", *where)
    assert answer.code == 1
    assert answer.lines()[-1] == "sslrun: no image of folder set can be read"


def test_a_sweep_of_previews(cli: Cli) -> None:
    answer = cli("data", "preview", "-m", "dataset=digits", "pretext=rotation,simclr", "images=2")
    assert answer.code == 0, answer.err
    assert len(answer.out.split()) == 2
    assert "failed" not in answer.err  # runs without a score have not failed
    assert all(Path(p).is_file() for p in answer.out.split())


@pytest.mark.parametrize("of_files", [True, False])
def test_the_drawn_images_are_chosen_at_random_and_named_by_their_files(
    of_files: bool, few_photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[torch.Tensor, list[str]]] = []

    def figure(run: Any, task: Any, batch: torch.Tensor, seed: int, files: list[str], limits: Any) -> Path:
        drawn.append((batch, list(files)))
        assert limits is None  # of 8-bit images
        return Path(f"{seed}.png")

    monkeypatch.setattr(preview, "views_figure", figure)
    monkeypatch.setattr(preview, "build_task", lambda *_: make_task("rotation"))
    node = folder_node(few_photos) if of_files else source_node("digits", None)
    (few_photos / "flower/flower 00.jpg").write_text("x")
    for seed in (0, 0, 5):
        settings: Any = SimpleNamespace(dataset=node, pretext={}, backbone=BACKBONES["smallcnn"], images=5, seed=seed)
        run: Any = SimpleNamespace(resolve=lambda **_: None)
        result = preview.preview(run, settings)
        assert (result["images"], result["figure"]) == (5, f"{seed}.png")
    (batch, files), (again, _), (other, _) = drawn
    assert batch.shape == (5, 3, 16, 16)
    assert torch.equal(batch, again)
    assert not torch.equal(batch, other)
    if of_files:
        assert len({*files}) == 5
        assert files != sorted(files)
        assert np.array_equal(
            batch.permute(0, 2, 3, 1).numpy(), np.stack([decode(f, 16, "crop", "rgb") for f in files])
        )
