"""`sslrun embed`: files of features, the map, the projector."""

import csv
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from omegaconf import OmegaConf
from PIL import Image

import sslrun
from sslrun.base.errors import UserError
from sslrun.run.run import Run
from sslrun.stages import embed
from tests.helpers import NO_MAP, QUICK, Cli, runs, summary


def test_every_format_has_the_features_of_the_python_api(in_world: Path, cli: Cli, few_photos: Path) -> None:
    for name in ("npz", "csv", "parquet"):
        answer = cli("embed", str(few_photos), f"format={name}", f"out=out/features.{name}", *NO_MAP)
        assert (answer.code, answer.out) == (0, f"out/features.{name}\n"), answer.err
    with np.load("out/features.npz") as result:
        files, features = result["images"].tolist(), result["features"]
    assert len(files) == 12
    made = summary(runs("embed")[0])
    assert (made["images"], made["features"], made["file"]) == (12, features.shape[1], "out/features.npz")
    assert made["of_run"] == made["config"]["run"] == str(runs("finetune")[-1])
    expected = sslrun.load(runs("finetune")[-1], device="cpu").embed(files)
    assert np.allclose(features, expected, atol=1e-5)
    with open("out/features.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r.pop("image") for r in rows] == files
    assert list(rows[0]) == [f"feature_{i}" for i in range(1, features.shape[1] + 1)]
    assert np.allclose([[float(v) for v in r.values()] for r in rows], features, rtol=1e-5, atol=1e-6)
    table = pyarrow.parquet.read_table("out/features.parquet").to_pydict()
    assert table["image"] == files
    assert np.array_equal(np.array(table["features"], np.float32), features)
    answer = cli("embed", str(few_photos), "out=out/features.npz", *NO_MAP)
    assert answer.code == 1
    assert "already exists" in answer.err


def test_a_pretrained_network_embeds_with_any_stage_and_has_no_classes(
    in_world: Path, cli: Cli, few_photos: Path
) -> None:
    run = runs("pretrain")[-1]
    model = sslrun.load(run, device="cpu")
    files = sorted(map(str, few_photos.rglob("*.jpg")))
    assert [model.embed(files[:2], stage=s).shape for s in (None, 1, 2)] == [(2, 16), (2, 8), (2, 16)]
    with pytest.raises(UserError, match=f"finetune init={run}"):
        model.predict(files)
    assert cli("embed", str(few_photos), f"run={run}", "stage=1", "out=one.npz", *NO_MAP).code == 0
    assert np.allclose(np.load("one.npz")["features"], model.embed(files, stage=1), atol=1e-5)
    answer = cli("embed", str(few_photos), f"run={run}", "stage=3", *NO_MAP)
    assert answer.code == 1
    assert "stages 1 to 2" in answer.err


def test_unreadable_images_are_reported_with_exit_code_1(in_world: Path, cli: Cli, few_photos: Path) -> None:
    (few_photos / "flower/broken.jpg").write_text("not an image")
    (few_photos / "temple/empty.jpg").write_text("")
    answer = cli("embed", str(few_photos), "out=rest.npz", *NO_MAP)
    assert answer.code == 1
    assert "broken.jpg: not an image" in answer.err
    assert "empty.jpg: the file is empty" in answer.err
    assert "2 of 14 images could not be read; rest.npz contains the others" in answer.err
    assert len(np.load("rest.npz")["images"]) == 12
    assert cli("search", str(few_photos / "flower/flower 00.jpg"), f"in={few_photos}", *QUICK).code == 0
    answer = cli("search", str(few_photos / "flower/broken.jpg"), f"in={few_photos}", *QUICK)
    assert (answer.code, answer.out) == (1, "")
    assert "broken.jpg: not an image" in answer.err
    Path("empty").mkdir()
    assert "no images in empty" in cli("embed", "empty").err
    assert "no images in empty" in cli("search", str(few_photos / "flower/flower 00.jpg"), "in=empty").err
    assert "in: required; set in=..." in cli("search", str(few_photos / "flower/flower 00.jpg")).err


def test_the_projector_has_names_folders_and_images(in_world: Path, cli: Cli, few_photos: Path) -> None:
    assert cli("embed", str(few_photos), "map=0", *QUICK).code == 0
    run = runs("embed")[-1]
    config = (run / "projector_config.pbtxt").read_text()
    folder = run / Path(re.search(r'tensor_path: "(.*)"', config)[1]).parent  # type: ignore[index]
    rows = [line.split("\t") for line in (folder / "metadata.tsv").read_text().splitlines()]
    assert rows[0] == ["folder", "image"]
    assert [r[0] for r in rows[1:]] == ["flower"] * 6 + ["temple"] * 6
    vectors = np.loadtxt(folder / "tensors.tsv")
    with np.load(run / "embeddings.npz") as result:
        assert np.allclose(vectors, result["features"], atol=1e-4)
        assert [r[1] for r in rows[1:]] == result["images"].tolist()
    assert Image.open(folder / "sprite.png").size == (128, 128)  # 12 images of 32 px in a grid of 4 x 4


@pytest.mark.parametrize("readable", [9, 2])
def test_the_map_and_the_projector_have_random_images_with_their_own_features(
    readable: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The feature of image i is i."""
    drawn: dict[str, tuple[list[str], list[int], list[str], int]] = {}

    def map_of(run: Run, files: list[str], x: np.ndarray, groups: list[str], seed: int, limits: list[int]) -> Path:
        assert limits == [0, 9]
        drawn["map"] = files, x[:, 0].tolist(), groups, seed
        return Path("map.html")

    def project(run: Run, files: list[str], x: np.ndarray, groups: list[str], limits: list[int]) -> None:
        assert limits == [0, 9]
        drawn["projector"] = files, x[:, 0].tolist(), groups, 0

    names = [f"{'ab'[i % 2]}/{i}.jpg" for i in range(readable)]
    x = np.arange(readable, dtype=np.float32)[:, None].repeat(2, 1)
    monkeypatch.setattr(embed, "named_images", lambda images: [*names, *["bad.jpg"] * (readable == 2)])
    model = SimpleNamespace(network=SimpleNamespace(path=Path("of/best.pt")), gray_range=[0, 9])
    monkeypatch.setattr(embed, "open_model", lambda *_: model)
    monkeypatch.setattr(embed, "indexed", lambda *_: (names, x, {"bad.jpg": "empty"} if readable == 2 else {}))
    monkeypatch.setattr(embed.embedding_map, "publish", map_of)
    monkeypatch.setattr(embed, "_project", project)
    run = Run(Path("run"), "embed", OmegaConf.create({"seed": 3, "run": "latest", "out": None}), {})
    settings: Any = SimpleNamespace(images=["."], run="latest", stage=None, batch_size=8, format="npz", out=None, map=5,
                                    projector=3, seed=3, device={})  # fmt: skip
    if readable == 2:
        with pytest.raises(
            UserError, match=r"1 of 3 images could not be read; run/embeddings\.npz contains the others"
        ):
            embed.embed(run, settings)
        assert list(drawn) == ["projector"]  # two images make no map
        run.close("failed")
        return
    result = embed.embed(run, settings)
    run.close("finished")
    assert result == {"images": 9, "features": 2, "file": "run/embeddings.npz", "of_run": "of"}
    assert (run.config["out"], run.config["run"]) == ("run/embeddings.npz", "of")
    for name, n, seed in (("map", 5, 3), ("projector", 3, 0)):
        files, features, groups, used = drawn[name]
        assert features == sorted({*features})
        assert features == sorted(np.random.default_rng(3).permutation(9)[:n].tolist())
        assert [names[int(i)] for i in features] == files
        assert [f[0] for f in files] == groups
        assert (len(files), used) == (n, seed)
    assert {*drawn["projector"][0]} < {*drawn["map"][0]}
