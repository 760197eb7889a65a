"""`sslrun embed` and `sslrun search`: files of features, the map, the projector, what is kept between commands."""

import csv
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

import sslrun
from sslrun.base.errors import UserError
from sslrun.base.files import put_in_place
from sslrun.report.embedding_map import folders_of
from tests.conftest import QUICK, Cli
from tests.test_cli import runs, summary
from tests.test_compare import CHROMIUM

NO_MAP = ("map=0", "projector=0", *QUICK)


@pytest.fixture
def images(photos: Path, tmp_path: Path) -> Path:
    """A folder of twelve of the photos, which may be written to."""
    for name in ("flower", "temple"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for file in sorted((photos / name).glob("*.jpg"))[:6]:
            shutil.copy(file, tmp_path / "mine" / name)
    return Path("mine")


def kept(answer: str) -> tuple[int, int]:
    """Return how many features were kept from before, and of how many."""
    result = re.search(r"features of (\d+) of (\d+) pictures were kept", answer)
    return (int(result[1]), int(result[2])) if result else (0, 0)


def test_every_format_holds_the_features_of_the_python_side(in_world: Path, cli: Cli, images: Path) -> None:
    for name in ("npz", "csv", "parquet"):
        answer = cli("embed", str(images), f"format={name}", f"out=out/features.{name}", *NO_MAP)
        assert (answer.code, answer.out) == (0, f"out/features.{name}\n"), answer.err
    with np.load("out/features.npz") as result:
        files, features = result["images"].tolist(), result["features"]
    assert len(files) == 12
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
    answer = cli("embed", str(images), "out=out/features.npz", *NO_MAP)
    assert answer.code == 1
    assert "is there already" in answer.err


def test_a_pretrained_network_embeds_by_any_stage_and_names_nothing(in_world: Path, cli: Cli, images: Path) -> None:
    run = runs("pretrain")[-1]
    model = sslrun.load(run, device="cpu")
    files = sorted(map(str, images.rglob("*.jpg")))
    assert [model.embed(files[:2], stage=s).shape for s in (None, 1, 2)] == [(2, 16), (2, 8), (2, 16)]
    with pytest.raises(UserError, match=f"finetune init={run}"):
        model.predict(files)
    assert cli("embed", str(images), f"run={run}", "stage=1", "out=one.npz", *NO_MAP).code == 0
    assert np.allclose(np.load("one.npz")["features"], model.embed(files, stage=1), atol=1e-5)
    answer = cli("embed", str(images), f"run={run}", "stage=3", *NO_MAP)
    assert answer.code == 1
    assert "stages 1 to 2" in answer.err


def test_only_new_and_changed_files_go_through_the_network_again(in_world: Path, cli: Cli, images: Path) -> None:
    assert kept(cli("embed", str(images), *NO_MAP).err) == (0, 0)
    assert kept(cli("embed", str(images), *NO_MAP).err) == (12, 12)
    shutil.copy(next(images.rglob("temple*.jpg")), images / "temple/new.jpg")
    changed = images / "flower/flower 00.jpg"
    before = sslrun.load(device="cpu").embed([changed])
    Image.open(changed).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(changed)
    answer = cli("search", str(changed), f"in={images}", "format=json", *QUICK)  # shares what embed has kept
    assert kept(answer.err) == (11, 13)
    assert cli("embed", str(images), "out=after.npz", *NO_MAP).code == 0
    result = dict(zip(np.load("after.npz")["images"].tolist(), np.load("after.npz")["features"], strict=True))
    assert np.allclose(result[str(changed)], sslrun.load(device="cpu").embed([changed])[0], atol=1e-5)
    assert not np.allclose(result[str(changed)], before[0], atol=1e-3)
    (archive,) = Path("cache/features").glob("*.npz")
    whole = archive.read_bytes()
    for damaged in (whole[:1000], whole[:69] + b"\0" + whole[70:], b"PK" + bytes(500)):
        archive.write_bytes(damaged)
        answer = cli("embed", str(images), *NO_MAP)
        assert answer.code == 0, answer.err
        assert "damaged" in answer.err
    other = runs("pretrain")[-1]
    assert kept(cli("embed", str(images), f"run={other}", *NO_MAP).err) == (0, 0)


def test_two_files_that_changed_places_are_told_apart(in_world: Path, cli: Cli) -> None:
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


def test_a_file_that_somebody_else_made_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "part").write_text("mine")
    (tmp_path / "there").write_text("theirs")
    with pytest.raises(UserError, match="made by somebody else meanwhile"):
        put_in_place(tmp_path / "part", tmp_path / "there", "out")
    assert (tmp_path / "there").read_text() == "theirs"
    assert (tmp_path / "part").read_text() == "mine"
    put_in_place(tmp_path / "part", tmp_path / "new", "out")
    assert [p.name for p in sorted(tmp_path.iterdir()) if p.is_file()] == ["new", "there"]


def test_what_cannot_be_read_is_named_and_the_exit_code_says_so(in_world: Path, cli: Cli, images: Path) -> None:
    (images / "flower/broken.jpg").write_text("no picture")
    (images / "temple/empty.jpg").write_text("")
    answer = cli("embed", str(images), "out=rest.npz", *NO_MAP)
    assert answer.code == 1
    assert "broken.jpg: not a picture" in answer.err
    assert "empty.jpg: the file is empty" in answer.err
    assert "2 of 14 pictures could not be read; rest.npz has the others" in answer.err
    assert len(np.load("rest.npz")["images"]) == 12
    assert cli("search", str(images / "flower/flower 00.jpg"), f"in={images}", *QUICK).code == 0
    answer = cli("search", str(images / "flower/broken.jpg"), f"in={images}", *QUICK)
    assert (answer.code, answer.out) == (1, "")
    assert "broken.jpg: not a picture" in answer.err
    Path("empty").mkdir()
    assert "no pictures in empty" in cli("embed", "empty").err
    assert "no pictures in empty" in cli("search", str(images / "flower/flower 00.jpg"), "in=empty").err
    assert "in: must be given, say in=..." in cli("search", str(images / "flower/flower 00.jpg")).err


def test_the_projector_has_names_folders_and_pictures(in_world: Path, cli: Cli, images: Path) -> None:
    assert cli("embed", str(images), "map=0", *QUICK).code == 0
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
    assert Image.open(folder / "sprite.png").size == (128, 128)  # 12 pictures of 32 px on 4 x 4 places


def test_the_map_says_what_each_picture_is(in_world: Path, cli: Cli, images: Path) -> None:
    (images / "flower/flower 00.jpg").rename(images / "flower/<b>&'\" 00.jpg")
    assert cli("embed", str(images), "map=10", "projector=0", *QUICK).code == 0
    run = runs("embed")[-1]
    page = (run / "map.html").read_text()
    shown = json.loads(re.search(r'id="images">(.*?)</script>', page, re.S)[1])  # type: ignore[index]
    names = {str(p) for p in images.rglob("*.jpg")}
    assert len(shown) == 10
    assert {p["name"] for p in shown} <= names
    assert all(p["group"] == Path(p["name"]).parent.name for p in shown)
    assert len({p["color"] for p in shown}) == 2
    assert all(0 <= p["x"] <= 1 and 0 <= p["y"] <= 1 for p in shown)
    assert not re.findall(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", page)
    assert f"run={runs('finetune')[-1]}" in page.split("<pre>")[1]  # however many runs there will be
    assert (run / "figures/map.png").stat().st_size > 5000
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    point = """<script>
    const p = pictures[4], [x, y] = at(p), event = new PointerEvent("pointermove");
    canvas.dispatchEvent(Object.defineProperties(event, {offsetX: {value: x}, offsetY: {value: y}}));
    const told = [getComputedStyle(shown).display, text.textContent, view.style.backgroundPosition];
    document.title = told.join("|");</script>"""
    probe = Path("probe.html")
    probe.write_text(page.replace("</body>", point + "</body>"))
    done = subprocess.run(
        [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom", probe.resolve().as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    messages = re.search(r"<title>(.*?)</title>", done.stdout)[1]  # type: ignore[index]
    assert messages.split("|")[0] == "block"
    assert Path(shown[4]["name"]).name.split(" ")[-1] in messages
    assert messages.endswith("0px -128px")  # the fifth of ten on a sheet of four a row


def test_pictures_that_are_all_alike_and_too_few_for_a_map(in_world: Path, cli: Cli, images: Path) -> None:
    one = next(images.rglob("*.jpg"))
    for i in range(5):
        Path("same").mkdir(exist_ok=True)
        shutil.copy(one, f"same/{i}.jpg")
    answer = cli("embed", "same", "projector=0", *QUICK)
    assert answer.code == 0, answer.err
    assert (runs("embed")[-1] / "map.html").is_file()
    answer = cli("embed", str(images), "map=1", "projector=0", *QUICK)
    assert answer.code == 0, answer.err
    assert "No map of fewer than 3 pictures" in answer.err


def test_folders_are_seen_from_the_one_above_all() -> None:
    assert folders_of(["a/x/1.jpg", "a/y/z/2.jpg"]) == ["x", "y/z"]
    assert folders_of(["a/1.jpg", "a/y/2.jpg"]) == ["", "y"]
    assert folders_of(["1.jpg"]) == [""]


def test_search_finds_the_nearest_but_not_the_picture_itself(in_world: Path, cli: Cli, images: Path) -> None:
    queries = [str(images / "flower/flower 00.jpg"), str(images / "temple/temple 01.jpg")]
    answer = {
        f: cli("search", *queries, f"in={images}", "n=4", f"format={f}", *QUICK) for f in ("json", "csv", "table")
    }
    rows = json.loads(answer["json"].out)
    files = [str(p) for p in sorted(images.rglob("*.jpg"))]
    x = sslrun.load(device="cpu").embed(files)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    for query in queries:
        order = [i for i in np.argsort(-(x @ x[files.index(query)])) if files[i] != query][:4]
        result = [r for r in rows if r["query"] == query]
        assert [r["image"] for r in result] == [files[i] for i in order]
        assert [r["rank"] for r in result] == [1, 2, 3, 4]
        assert [r["similarity"] for r in result] == pytest.approx((x[order] @ x[files.index(query)]).tolist(), abs=1e-4)
    table = list(csv.DictReader(answer["csv"].out.splitlines()))
    assert [(r["query"], r["image"]) for r in table] == [(r["query"], r["image"]) for r in rows]
    assert all(r["image"] in answer["table"].out for r in rows)
    sheet = Image.open(runs("search")[-1] / "figures/neighbors.png")
    assert sheet.width > 4 * sheet.height / 2  # two rows of five
    assert summary(runs("search")[-1])["images"] == 12
