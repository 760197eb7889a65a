"""`sslrun predict`: name what is on pictures."""

import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.base.files import new_folder, write_text
from sslrun.base.output import Row, as_csv, as_json, as_jsonl, as_table
from sslrun.base.text import counted, percent, speed
from sslrun.config.commands import WITH_CLASSIFIER
from sslrun.config.types import Count, Fraction, Node, PositiveInt
from sslrun.inference.inputs import named_images
from sslrun.inference.model import Model, Prediction, open_model
from sslrun.report.sheets import prediction_figures
from sslrun.runs.run import Run

UNSURE = "_unsure"  # the folder of `sort_into` for what is below the threshold


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Settings of predictions; what they mean stands in conf/predict.yaml."""

    images: list[str]
    run: str
    top: PositiveInt
    unsure: Literal["auto"] | Fraction | None
    views: PositiveInt
    format: Literal["table", "json", "jsonl", "csv"]
    save: str | None
    sort_into: str | None
    figures: Count
    batch_size: PositiveInt
    device: Node


def predict(run: Run, settings: Predict) -> dict[str, Any]:
    """Predict pictures, and those in folders; the answer goes to standard output, and nothing else does.

    Returns:
        What goes into the summary.

    Raises:
        UserError: nothing to predict, a folder to write into that is not empty, or some pictures could not be read
            (after the answer for the others).
    """
    if settings.save and settings.sort_into and Path(settings.save).resolve() == Path(settings.sort_into).resolve():
        raise UserError(f"save= and sort_into= both name {settings.save}: each wants a folder of its own")
    files = named_images(settings.images)
    for key, folder in (("save", settings.save), ("sort_into", settings.sort_into)):
        if folder:
            new_folder(key, Path(folder))
    model = open_model(settings.run, settings.device, WITH_CLASSIFIER)
    run.resolve(run=str(model.network.path.parent))
    began = time.perf_counter()
    rows = [_row(p) for p in model.predict(files, settings.top, settings.unsure, settings.views, settings.batch_size)]
    seconds = time.perf_counter() - began
    flat = as_csv(_flat(rows))
    text = {"json": as_json, "jsonl": as_jsonl, "csv": lambda _: flat, "table": _table}[settings.format](rows)
    for name, written in (("predictions.json", as_json(rows)), ("predictions.csv", flat)):
        write_text(run.directory / name, written)
    if settings.save:
        prediction_figures(rows, Path(settings.save))
    else:
        prediction_figures(rows[: settings.figures], run.directory / "figures")
    if settings.sort_into:
        _sort(rows, Path(settings.sort_into), model.class_names)
    sys.stdout.write(text)
    sys.stdout.flush()
    log.info("%s in %s; written to %s", counted(len(rows), "image"), speed(len(rows), "images", seconds), run.directory)
    doubts = sum(r["unsure"] for r in rows)
    if doubts:
        log.info("%d of %d are unsure: below %s.", doubts, len(rows), _threshold_text(model, settings.unsure))
    elif settings.unsure == "auto" and model.confidence_threshold is None:
        log.info("None is called unsure: on validation there is no confidence from which on 95 % were right.")
    bad = [r for r in rows if r["error"]]
    if bad:
        raise UserError(f"{len(bad)} of {len(rows)} could not be read; the first: {bad[0]['image']}: {bad[0]['error']}")
    return {
        "images": len(rows),
        "unsure": doubts,
        "device": model.device.describe(),
        "precision": model.device.precision,
        "images_per_second": round(len(rows) / seconds, 1),
    }


def _row(p: Prediction) -> Row:
    top = [{"class": g.class_name, "confidence": g.confidence} for g in p.top]
    first = top[0] if top else {"class": None, "confidence": None}
    return {"image": p.image, **first, "unsure": p.unsure, "top": top, "error": p.error}


def _threshold_text(model: Model, unsure: str | float | None) -> str:
    if unsure == "auto" and model.confidence_threshold is not None:
        return f"{percent(model.confidence_threshold)} confidence, from which on 95 % were right on validation"
    return f"{unsure}"


def _sort(rows: Sequence[Row], folder: Path, class_names: Sequence[str]) -> None:
    """Copy pictures into a folder a class; those that are unsure into one of their own. Nothing is moved."""
    places = _folders(class_names)
    for row in rows:
        if row["error"]:
            continue
        place = folder / (UNSURE if row["unsure"] else places[row["class"]])
        place.mkdir(parents=True, exist_ok=True)
        name, n = Path(row["image"]), 1
        target = place / name.name
        while target.exists():  # another folder's picture of the same name
            n += 1
            target = place / f"{name.stem}_{n}{name.suffix}"
        shutil.copy2(name, target)
    log.info("Copied into %s", folder)


def _folders(class_names: Sequence[str]) -> dict[str, str]:
    """Return a name for the folder of each class, each its own."""
    taken: dict[str, str] = {}
    for name in class_names:
        plain = "".join("_" if c in '/\\:*?"<>|' or ord(c) < 32 else c for c in name).strip()
        plain = plain if plain.strip(".") and plain != UNSURE else f"_{plain}"
        n, own = 1, plain
        while own in taken.values():
            n += 1
            own = f"{plain}_{n}"
        taken[name] = own
    return taken


def _flat(rows: Sequence[Row]) -> list[Row]:
    """Return rows with a column for each guess; a picture that could not be read has them empty."""
    deepest = max((len(r["top"]) for r in rows), default=0)
    flat = []
    for r in rows:
        cells: Row = {"image": r["image"]}
        for i in range(deepest):
            guess = r["top"][i] if i < len(r["top"]) else {"class": None, "confidence": None}
            cells |= {f"class_{i + 1}": guess["class"], f"confidence_{i + 1}": guess["confidence"]}
        flat.append({**cells, "unsure": r["unsure"], "error": r["error"]})
    return flat


def _table(rows: Sequence[Row]) -> str:
    from rich.text import Text

    several = any(len(r["top"]) > 1 for r in rows)
    columns = ["image", "class", "confidence", *["next guesses"] * several]
    lines: list[list[Any]] = []
    for r in rows:
        if r["error"]:
            lines.append([r["image"], Text(r["error"], style="red"), ""])
            continue
        others = ", ".join(f"{g['class']} {percent(g['confidence'])}" for g in r["top"][1:])
        sure = Text(r["class"] + (", unsure" if r["unsure"] else ""), style="dim" if r["unsure"] else "")
        lines.append([r["image"], sure, percent(r["confidence"]), *[others] * several])
    return as_table(columns, lines, {"confidence"})
