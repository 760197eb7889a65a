"""`sslrun search`."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sslrun
from sslrun.stages.search import _nearest
from tests.helpers import QUICK, Cli, runs, summary


def test_search_finds_the_nearest_but_not_the_query(in_world: Path, cli: Cli, few_photos: Path) -> None:
    queries = [str(few_photos / "flower/flower 00.jpg"), str(few_photos / "temple/temple 01.jpg")]
    answer = {
        f: cli("search", *queries, f"in={few_photos}", "n=4", f"format={f}", *QUICK) for f in ("json", "csv", "table")
    }
    rows = json.loads(answer["json"].out)
    files = [str(p) for p in sorted(few_photos.rglob("*.jpg"))]
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
    assert summary(runs("search")[-1])["queries"] == 2
    assert (
        summary(runs("search")[-1])["of_run"]
        == summary(runs("search")[-1])["config"]["run"]
        == str(runs("finetune")[-1])
    )
    written = list(csv.DictReader((runs("search")[-1] / "neighbors.csv").open()))
    assert [(r["query"], r["image"]) for r in written] == [(r["query"], r["image"]) for r in rows]


def test_neighbors_by_angle() -> None:
    """Not by distance; a query in the searched folder is not its own neighbor, by whatever path."""
    features = np.array([[1, 0], [10, 10], [0, 2], [5, 1], [1, 0.1]], np.float32)
    files = ["a", "b", "c", "d", "e"]
    queries = np.array([[3, 0], [0, 1]], np.float32)
    rows = _nearest([str(Path("a").resolve()), "other"], queries, files, features, 2)
    assert [(r["query"], r["rank"], r["image"]) for r in rows] == [
        (str(Path("a").resolve()), 1, "e"), (str(Path("a").resolve()), 2, "d"), ("other", 1, "c"), ("other", 2, "b"),
    ]  # fmt: skip
    assert [r["similarity"] for r in rows] == pytest.approx([0.995037, 0.980581, 1, 0.707107], abs=1e-6)
    assert len(_nearest(["other"], queries[:1], files, features, 99)) == 5
    assert len(_nearest(["folder/a"], queries[:1], files, features, 99)) == 5  # another file of this name
