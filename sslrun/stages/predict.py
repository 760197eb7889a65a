"""`sslrun predict`: classify images."""

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
from sslrun.data.layout import TO_SORT, UNLIKE, UNSURE
from sslrun.data.options import has_groups
from sslrun.evaluation.calibration import Threshold, no_threshold_text
from sslrun.evaluation.novelty import NOVELTY
from sslrun.inference.inputs import named_images
from sslrun.inference.model import Model, Prediction, open_model
from sslrun.report.sheets import prediction_figures
from sslrun.run.run import Run


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Settings of `sslrun predict`, documented in conf/predict.yaml."""

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
    """Classify images and those in folders; only the results are printed to standard output.

    Returns:
        Entries of the run's summary.

    Raises:
        UserError: no images, an output folder that is not empty, or some images could not be read (raised after the
            results of the others are printed).
    """
    if settings.save and settings.sort_into and Path(settings.save).resolve() == Path(settings.sort_into).resolve():
        raise UserError(f"save= and sort_into= are both {settings.save}; use two folders")
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
        prediction_figures(rows, Path(settings.save), model.gray_range)
    else:
        prediction_figures(rows[: settings.figures], run.directory / "figures", model.gray_range)
    if settings.sort_into:
        _sort(rows, Path(settings.sort_into), model.class_names)
    sys.stdout.write(text)
    sys.stdout.flush()
    log.info("%s in %s; written to %s", counted(len(rows), "image"), speed(len(rows), "images", seconds), run.directory)
    unsure = _report_unsure(rows, model, settings)
    unlike = _report_unlike(rows, model)
    bad = [r for r in rows if r["error"]]
    if bad:
        unreadable, first = f"{len(bad)} of {counted(len(rows), 'image')}", bad[0]
        raise UserError(f"{unreadable} could not be read; the first: {first['image']}: {first['error']}")
    return {
        "images": len(rows),
        "unsure": unsure,
        "unlike_training": unlike,
        "device": model.device.describe(),
        "precision": model.device.precision,
        "images_per_second": round(len(rows) / seconds, 1),
    }


def _row(p: Prediction) -> Row:
    top = [{"class": g.class_name, "confidence": g.confidence} for g in p.top]
    first = top[0] if top else {"class": None, "confidence": None}
    novelty = {"unlike_training": p.unlike_training, "distance": p.distance}
    return {"image": p.image, **first, "unsure": p.unsure, **novelty, "top": top, "error": p.error}


def _report_unlike(rows: Sequence[Row], model: Model) -> int | None:
    """Log how many images are unlike all training images, or that this is unknown; return their number."""
    if model.novelty is None:
        log.info(
            "Not checked for images unlike the training images: %s has no %s, as runs of studies, of older versions or "
            "with one group.", model.network.path.parent, NOVELTY,
        )  # fmt: skip
        return None
    unlike = sum(bool(r["unlike_training"]) for r in rows)
    if unlike:
        log.info(
            "%d of %d are unlike the training images: the nearest one is farther away than usual. Do not rely on their "
            "classes.", unlike, len(rows),
        )  # fmt: skip
    return unlike


def _report_unsure(rows: Sequence[Row], model: Model, settings: Predict) -> int | None:
    """Log how many predictions are unsure, or why that is unknown; return their number."""
    if settings.unsure is None:
        return None
    if settings.unsure == "auto" and model.confidence_threshold is None:
        reason = no_threshold_text(model.network.metrics)
        sorted_too = f", so none is in {UNSURE}" if settings.sort_into else ""
        log.info("No image was checked for being unsure%s: %s.", sorted_too, reason)
        return None
    unsure = sum(bool(r["unsure"]) for r in rows)
    if unsure:
        log.info("%d of %d are unsure: below %s.", unsure, len(rows), _threshold_text(model, settings.unsure))
    return unsure


def _threshold_text(model: Model, unsure: str | float | None) -> str:
    threshold = Threshold.of(model.network.metrics)
    if unsure == "auto" and threshold is not None:
        text = threshold.text(has_groups(model.network.config["dataset"]))
        return f"{percent(threshold.value)} confidence ({text})"
    return f"{unsure}"


def _sort(rows: Sequence[Row], folder: Path, class_names: Sequence[str]) -> None:
    """Copy images into one folder per class, and doubtful ones into two others; originals stay where they are."""
    folders = _folders(class_names)
    for row in rows:
        if row["error"]:
            continue
        directory = folder / (UNLIKE if row["unlike_training"] else UNSURE if row["unsure"] else folders[row["class"]])
        directory.mkdir(parents=True, exist_ok=True)
        source, n = Path(row["image"]), 1
        target = directory / source.name
        while target.exists():  # an image of the same name in another folder
            n += 1
            target = directory / f"{source.stem}_{n}{source.suffix}"
        shutil.copy2(source, target)
    log.info("Copied to %s", folder)


def _folders(class_names: Sequence[str]) -> dict[str, str]:
    """Return a unique and valid folder name for each class."""
    taken: dict[str, str] = {}
    for name in class_names:
        plain = "".join("_" if c in '/\\:*?"<>|' or ord(c) < 32 else c for c in name).strip()
        plain = plain if plain.strip(".") and plain.lower() not in (UNSURE, UNLIKE, TO_SORT) else f"_{plain}"
        n, unique = 1, plain
        while unique in taken.values():
            n += 1
            unique = f"{plain}_{n}"
        taken[name] = unique
    return taken


def _flat(rows: Sequence[Row]) -> list[Row]:
    """Return rows with columns for each of the top classes, which are empty for unreadable images."""
    k = max((len(r["top"]) for r in rows), default=0)
    flat = []
    for r in rows:
        cells: Row = {"image": r["image"]}
        for i in range(k):
            p = r["top"][i] if i < len(r["top"]) else {"class": None, "confidence": None}
            cells |= {f"class_{i + 1}": p["class"], f"confidence_{i + 1}": p["confidence"]}
        flat.append({**cells, **{key: r[key] for key in ("unsure", "unlike_training", "distance", "error")}})
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
        doubt = ", unlike training" if r["unlike_training"] else ", unsure" if r["unsure"] else ""
        name = Text(r["class"] + doubt, style="dim" if doubt else "")
        lines.append([r["image"], name, percent(r["confidence"]), *[others] * several])
    return as_table(columns, lines, {"confidence"})
