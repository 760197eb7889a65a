"""`sslrun search`: find the images most similar to a query image."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.base.files import write_text
from sslrun.base.output import Row, as_csv, as_json, as_jsonl, as_table
from sslrun.base.text import counted
from sslrun.config.types import Node, PositiveInt
from sslrun.inference.index import indexed
from sslrun.inference.inputs import named_images
from sslrun.inference.model import open_model
from sslrun.report.sheets import contact_sheet
from sslrun.run.run import Run

SHEET = 20  # queries on the contact sheet


@dataclass(frozen=True, kw_only=True)
class Search:
    """Settings of `sslrun search`, documented in conf/search.yaml."""

    images: list[str]
    in_: str
    n: PositiveInt
    run: str
    stage: PositiveInt | None
    batch_size: PositiveInt
    format: Literal["table", "json", "jsonl", "csv"]
    device: Node


def search(run: Run, settings: Search) -> dict[str, Any]:
    """Print the images of a folder that are most similar to query images, by cosine similarity of their features.

    Returns:
        Entries of the run's summary.

    Raises:
        UserError: no query image, one that cannot be read, or no images to search.
    """
    queries = named_images(settings.images)
    if not Path(settings.in_).is_dir():
        raise UserError(f"in={settings.in_}: no such folder")
    candidates = named_images([settings.in_])
    model = open_model(settings.run, settings.device)
    run.resolve(run=str(model.network.path.parent))
    query_features = model.embed(queries, settings.stage, settings.batch_size)
    files, features, _ = indexed(model, candidates, settings.stage, settings.batch_size)
    rows = _nearest(queries, query_features, files, features, settings.n)
    sys.stdout.write({"table": _table, "json": as_json, "jsonl": as_jsonl, "csv": as_csv}[settings.format](rows))
    sys.stdout.flush()
    write_text(run.directory / "neighbors.csv", as_csv(rows))
    tiles = []
    for query in queries[:SHEET]:
        own_rows = [r for r in rows if r["query"] == query]
        captions = [f"{r['rank']}  {r['similarity']:.3f}" for r in own_rows]
        tiles.append([(query, "query"), *((r["image"], c) for r, c in zip(own_rows, captions, strict=True))])
    sheet = run.figure("neighbors")
    contact_sheet(tiles, model.gray_range).save(sheet)
    log.info("Searched %s; contact sheet: %s", counted(len(files), "image"), sheet)
    return {"images": len(files), "queries": len(queries), "of_run": str(model.network.path.parent)}


def _nearest(queries: Sequence[str], query_features: Any, files: Sequence[str], features: Any, n: int) -> list[Row]:
    """Return a row for each of the n nearest neighbors of each query, without the query itself."""
    from sklearn.neighbors import NearestNeighbors

    knn = NearestNeighbors(n_neighbors=min(n + 1, len(files)), metric="cosine").fit(features)
    distances, indices = knn.kneighbors(query_features)
    rows = []
    for query, near, ids in zip(queries, distances, indices, strict=True):
        others = [(d, files[i]) for d, i in zip(near, ids, strict=True) if not _same_file(query, files[i])]
        for rank, (d, file) in enumerate(others[:n], 1):
            rows.append({"query": query, "rank": rank, "image": file, "similarity": round(1 - float(d), 6)})
    return rows


def _same_file(a: str, b: str) -> bool:
    return Path(a).resolve() == Path(b).resolve()


def _table(rows: Sequence[Row]) -> str:
    lines = [[r["query"], str(r["rank"]), f"{r['similarity']:.3f}", r["image"]] for r in rows]
    return as_table(["query", "rank", "similarity", "image"], lines, {"rank", "similarity"})
