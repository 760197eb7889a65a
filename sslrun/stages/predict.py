"""`sslrun predict`: name what is on pictures."""

import csv
import io
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from sslrun import report
from sslrun.api import Model, Prediction, named_pictures
from sslrun.config import Count, Fraction, Node, PositiveInt, UserError
from sslrun.console import log
from sslrun.run import Run, write_text
from sslrun.start import find_run, inference_device, load_classifier

UNSURE = "_unsure"  # the folder of `sort_into` for what is below the threshold
Row = dict[str, Any]


def predict(
    own: Run,
    *,
    images: list[str],
    run: str,
    top: PositiveInt,
    unsure: Literal["auto"] | Fraction | None,
    views: PositiveInt,
    format: Literal["table", "json", "jsonl", "csv"],
    save: str | None,
    sort_into: str | None,
    figures: Count,
    batch_size: PositiveInt,
    device: Node,
) -> dict[str, Any]:
    """Predict pictures, and those in folders; the answer goes to standard output, and nothing else does.

    Returns:
        What goes into the summary.

    Raises:
        UserError: nothing to predict, a folder to write into that is not empty, or some pictures could not be read
            (after the answer for the others).
    """
    for key, folder in (("save", save), ("sort_into", sort_into)):
        if folder and Path(folder).exists() and (not Path(folder).is_dir() or any(Path(folder).iterdir())):
            raise UserError(f"{key}={folder} is there already and not empty: name a new folder")
    files = named_pictures(images)
    trained = load_classifier(find_run(run))
    own.settle(run=str(trained.path.parent))
    model = Model(trained, inference_device(device, trained))
    began = time.perf_counter()
    rows = [_row(p) for p in model.predict(files, top, unsure, views, batch_size)]
    seconds = time.perf_counter() - began
    text = {"table": _table, "json": _json, "jsonl": _jsonl, "csv": _csv}[format](rows)
    for name, written in (("predictions.json", _json(rows)), ("predictions.csv", _csv(rows))):
        write_text(own.directory / name, written)
    if save:
        Path(save).mkdir(parents=True, exist_ok=True)
        report.prediction_figures(rows, Path(save))
    else:
        report.prediction_figures(rows[:figures], own.directory / "figures")
    if sort_into:
        _sort(rows, Path(sort_into))
    sys.stdout.write(text)
    sys.stdout.flush()
    log.info(
        "%d pictures in %.1f s, %.0f images/s; written to %s", len(rows), seconds, len(rows) / seconds, own.directory
    )
    doubts = sum(r["unsure"] for r in rows)
    if doubts:
        log.info("%d of %d are unsure: below %s.", doubts, len(rows), _said_threshold(model, unsure))
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


def _said_threshold(model: Model, unsure: str | float | None) -> str:
    if unsure == "auto" and model.sure_above is not None:
        return f"{model.sure_above:.1%} confidence, from which on 95 % were right on validation"
    return f"{unsure}"


def _sort(rows: Sequence[Row], folder: Path) -> None:
    """Copy pictures into a folder a class; those that are unsure into one of their own. Nothing is moved."""
    for row in rows:
        if row["error"]:
            continue
        place = folder / (UNSURE if row["unsure"] else _plain(row["class"]))
        place.mkdir(parents=True, exist_ok=True)
        name, n = Path(row["image"]), 1
        target = place / name.name
        while target.exists():  # another folder's picture of the same name
            n += 1
            target = place / f"{name.stem}_{n}{name.suffix}"
        shutil.copy2(name, target)
    log.info("Copied into %s", folder)


def _plain(class_name: str) -> str:
    """Return a class name as the name of a folder."""
    plain = "".join("_" if c in '/\\:*?"<>|' or ord(c) < 32 else c for c in class_name).strip()
    return plain if plain.strip(".") and plain != UNSURE else f"_{plain}"


def _json(rows: Sequence[Row]) -> str:
    return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"


def _jsonl(rows: Sequence[Row]) -> str:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)


def _csv(rows: Sequence[Row]) -> str:
    deepest = max((len(r["top"]) for r in rows), default=0)
    names = [n for i in range(1, deepest + 1) for n in (f"class_{i}", f"confidence_{i}")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["image", *names, "unsure", "error"])
    for r in rows:
        cells = [v for guess in r["top"] for v in (guess["class"], guess["confidence"])]
        blank = [""] * (len(names) - len(cells))
        writer.writerow([r["image"], *cells, *blank, str(r["unsure"]).lower(), r["error"] or ""])
    return out.getvalue()


def _table(rows: Sequence[Row]) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    deepest = max((len(r["top"]) for r in rows), default=0)
    for name in ("image", "class", "confidence", *["next guesses"] * (deepest > 1)):
        table.add_column(name, overflow="fold", justify="right" if name == "confidence" else "left")
    for r in rows:
        if r["error"]:
            table.add_row(Text(r["image"]), Text(r["error"], style="red"), "")
            continue
        others = ", ".join(f"{g['class']} {g['confidence']:.0%}" for g in r["top"][1:])
        sure = Text(r["class"] + (", unsure" if r["unsure"] else ""), style="dim" if r["unsure"] else "")
        table.add_row(Text(r["image"]), sure, f"{r['confidence']:.1%}", Text(others))
    console = Console(file=io.StringIO(), width=None if sys.stdout.isatty() else 160)
    with console.capture() as capture:
        console.print(table)
    return capture.get()
