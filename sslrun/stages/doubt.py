"""`sslrun data doubt`: list the labels that predictions contradict most."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.base.output import Row, as_csv, as_json, as_jsonl, as_table, write_csv
from sslrun.base.text import counted, percent
from sslrun.config.types import PositiveInt
from sslrun.data.dataset import Dataset, listed
from sslrun.data.labeled import labeled_of
from sslrun.evaluation.doubt import doubtful
from sslrun.report.sheets import Tile, contact_sheet
from sslrun.run.find import read_summary
from sslrun.run.named import find_run
from sslrun.run.run import Run
from sslrun.training.candidates import OUT_OF_FOLD

COLUMNS = 8  # of the contact sheet
HEADER = ("rank", "image", "label", "seems", "confidence_label", "confidence_seems")


@dataclass(frozen=True, kw_only=True)
class Doubt:
    """Settings of `sslrun data doubt`, documented in conf/doubt.yaml."""

    run: str
    n: PositiveInt
    format: Literal["table", "json", "jsonl", "csv"]


def doubt(run: Run, settings: Doubt) -> dict[str, Any]:
    """Print the labeled images whose label the predictions out of fold contradict, the most doubtful first.

    Returns:
        Entries of the run's summary.

    Raises:
        UserError: no such run, one without predictions out of fold, or whose images have changed.
    """
    directory = find_run(settings.run)
    run.resolve(run=str(directory))
    summary = read_summary(directory)
    if not (directory / OUT_OF_FOLD).is_file():
        raise UserError(
            f"{directory} has no predictions on images that it was not trained on: every class has one label, only one "
            "classifier was trained with a validation split, or it is of an older version"
        )
    config = summary["config"]
    dataset, labeled = config["dataset"], labeled_of(config)
    if labeled.pool.fingerprint() != summary["data_fingerprint"]:
        raise UserError(f"{directory} was trained on other images or labels than those found now: train it again")
    probabilities, labels = _predictions(directory, summary["chosen"])
    rows = np.flatnonzero(~np.isnan(probabilities).any(1))
    found, seems = doubtful(probabilities[rows], labels[rows])
    doubts = len(found)
    found, seems = rows[found][: settings.n], seems[: settings.n]
    table = _rows(labeled.every, dataset, found, seems, probabilities)
    writers: dict[str, Callable[[Sequence[Row]], str]] = {
        "table": _table, "json": as_json, "jsonl": as_jsonl, "csv": lambda rows: as_csv(rows, HEADER)
    }  # fmt: skip
    if table or settings.format != "table":
        sys.stdout.write(writers[settings.format](table))
    sys.stdout.flush()
    write_csv(run.directory / "doubts.csv", table)
    log.info(
        "%s of %s seem wrong to a classifier that was not trained on them.", f"{doubts:,}", counted(len(rows), "label")
    )
    if unseen := len(labels) - len(rows):
        log.info("%s not checked: no prediction was made without training on them.", counted(unseen, "label"))
    if doubts:
        sheet = run.figure("doubts")
        contact_sheet(_tiles(labeled.every, found, table)).save(sheet)
        log.info(
            "Contact sheet of the first %d: %s. Some labels are right: look before you change one.", len(table), sheet
        )
    return {"images": len(rows), "doubts": doubts, "of_run": str(directory), "of_dataset": dataset}


def _predictions(directory: Path, chosen: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities, `N x classes`, of the most accurate variant of the chosen classifier, and N labels."""
    with np.load(directory / OUT_OF_FOLD) as kept:
        names, probabilities, labels = kept["candidates"], kept["probabilities"], kept["labels"]
    own = [i for i, name in enumerate(names) if str(name).split()[0] == chosen] or list(range(len(names)))
    known = ~np.isnan(probabilities[own]).any((0, 2))
    right = (probabilities[own][:, known].argmax(2) == labels[known]).mean(1)
    best: np.ndarray = probabilities[own[int(right.argmax())]]
    return best, labels


def _rows(data: Dataset, node: dict[str, Any], found: np.ndarray, seems: np.ndarray, p: np.ndarray) -> list[Row]:
    assert data.labels is not None
    files = _files(node)
    out = []
    for rank, (i, k) in enumerate(zip(found, seems, strict=True), 1):
        label = int(data.labels[i])
        out.append({
            "rank": rank,
            "image": files.get(data.names[i], data.names[i]),
            "label": data.class_names[label],
            "seems": data.class_names[k],
            "confidence_label": round(float(p[i, label]), 4),
            "confidence_seems": round(float(p[i, k]), 4),
        })  # fmt: skip
    return out


def _table(rows: Sequence[Row]) -> str:
    shown = [
        [
            str(r["rank"]),
            r["label"],
            r["seems"],
            percent(r["confidence_label"]),
            percent(r["confidence_seems"]),
            r["image"],
        ]
        for r in rows
    ]
    names = ("rank", "label", "seems", "confidence of the label", "of the other", "image")
    return as_table(names, shown, (names[0], *names[3:5]))


def _files(node: dict[str, Any]) -> dict[str, str]:
    """Return the file of each name; empty for a data set of arrays."""
    listing = listed(node, "train")
    assert listing is not None
    return dict(zip(listing.names, listing.items, strict=True)) if isinstance(listing.items, list) else {}


def _tiles(data: Dataset, found: np.ndarray, table: Sequence[Row]) -> list[list[Tile]]:
    import torch

    pixels = data.images[torch.from_numpy(found)].permute(0, 2, 3, 1).numpy()
    tiles: list[Tile] = [
        (image, f"{row['rank']}  {row['label']}", f"or {row['seems']}?", Path(row["image"]).name)
        for image, row in zip(pixels, table, strict=True)
    ]
    return [tiles[i : i + COLUMNS] for i in range(0, len(tiles), COLUMNS)]
