"""The map of `sslrun embed`."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sslrun.report.embedding_map import folders_of
from sslrun.report.style import GRAY
from tests.helpers import CHROMIUM, QUICK, Cli, runs


def test_unlabeled_images_are_gray(in_world: Path, cli: Cli, few_photos: Path) -> None:
    (few_photos / "temple").rename(few_photos / "unlabeled")
    assert cli("embed", str(few_photos), "projector=0", *QUICK).code == 0
    page = (runs("embed")[-1] / "map.html").read_text()
    shown = json.loads(re.search(r'id="images">(.*?)</script>', page, re.S)[1])  # type: ignore[index]
    assert {p["color"] == GRAY for p in shown if p["group"] == "unlabeled"} == {True}
    assert {p["color"] == GRAY for p in shown if p["group"] == "flower"} == {False}


def test_the_map_shows_each_image_with_its_name(in_world: Path, cli: Cli, few_photos: Path) -> None:
    (few_photos / "flower/flower 00.jpg").rename(few_photos / "flower/<b>&'\" 00.jpg")
    assert cli("embed", str(few_photos), "map=10", "projector=0", *QUICK).code == 0
    run = runs("embed")[-1]
    page = (run / "map.html").read_text()
    shown = json.loads(re.search(r'id="images">(.*?)</script>', page, re.S)[1])  # type: ignore[index]
    names = {str(p) for p in few_photos.rglob("*.jpg")}
    assert len(shown) == 10
    assert {p["name"] for p in shown} <= names
    assert all(p["group"] == Path(p["name"]).parent.name for p in shown)
    assert len({p["color"] for p in shown}) == 2
    assert all(0 <= p["x"] <= 1 and 0 <= p["y"] <= 1 for p in shown)
    assert not re.findall(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", page)
    assert f"run={runs('finetune')[-1]}" in page.split("<pre>")[1]  # not run=latest, so that it stays valid
    assert (run / "figures/map.png").stat().st_size > 5000
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    point = """<script>
    const p = images[4], [x, y] = at(p), event = new PointerEvent("pointermove");
    canvas.dispatchEvent(Object.defineProperties(event, {offsetX: {value: x}, offsetY: {value: y}}));
    const values = [getComputedStyle(shown).display, text.textContent, view.style.backgroundPosition];
    document.title = values.join("|");</script>"""
    probe = Path("probe.html")
    probe.write_text(page.replace("</body>", point + "</body>"))
    done = subprocess.run(
        [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom", probe.resolve().as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", done.stdout)[1]  # type: ignore[index]
    assert title.split("|")[0] == "block"
    assert Path(shown[4]["name"]).name.split(" ")[-1] in title
    assert title.endswith("0px -128px")  # the fifth of ten images, four per row


def test_identical_images_and_too_few_for_a_map(in_world: Path, cli: Cli, few_photos: Path) -> None:
    one = next(few_photos.rglob("*.jpg"))
    for i in range(5):
        Path("same").mkdir(exist_ok=True)
        shutil.copy(one, f"same/{i}.jpg")
    answer = cli("embed", "same", "projector=0", *QUICK)
    assert answer.code == 0, answer.err
    assert (runs("embed")[-1] / "map.html").is_file()
    answer = cli("embed", str(few_photos), "map=1", "projector=0", *QUICK)
    assert answer.code == 0, answer.err
    assert "No map: it needs at least 3 images" in answer.err


def test_folders_are_relative_to_their_common_parent() -> None:
    assert folders_of(["a/x/1.jpg", "a/y/z/2.jpg"]) == ["x", "y/z"]
    assert folders_of(["a/1.jpg", "a/y/2.jpg"]) == ["", "y"]
    assert folders_of(["1.jpg"]) == [""]
