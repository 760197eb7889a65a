"""`sslrun predict`: name what is on pictures."""

import csv
import io
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from sslrun import report
from sslrun.classifier import probabilities
from sslrun.config import Count, Node, PositiveInt, UserError
from sslrun.console import log, progress
from sslrun.data.decode import UnreadableImage, decode, find_pictures
from sslrun.data.workers import cores
from sslrun.run import Run, write_text
from sslrun.start import Trained, find_run, inference_device, load_classifier


def predict(
    own: Run,
    *,
    images: list[str],
    run: str,
    top: PositiveInt,
    format: Literal["table", "json", "csv"],
    figures: Count,
    batch_size: PositiveInt,
    device: Node,
) -> dict[str, Any]:
    """Predict pictures, and those in folders; the answer goes to standard output, and nothing else does.

    Returns:
        What goes into the summary.

    Raises:
        UserError: nothing to predict, or some pictures could not be read (after the answer for the others).
    """
    files = _files(images)
    trained = load_classifier(find_run(run))
    own.settle(run=str(trained.path.parent))
    hardware = inference_device(device, trained)
    hardware.put(trained.model)
    rows: list[dict[str, Any]] = []
    with progress("predicting", len(files), "images") as advance:
        for i in range(0, len(files), batch_size):
            rows += _batch(files[i : i + batch_size], trained, hardware, batch_size, top)
            advance(len(files[i : i + batch_size]))
    text = {"table": _table, "json": _json, "csv": _csv}[format](rows)
    for name, written in (("predictions.json", _json(rows)), ("predictions.csv", _csv(rows))):
        write_text(own.directory / name, written)
    report.prediction_figures(own, rows[:figures])
    sys.stdout.write(text)
    sys.stdout.flush()
    log.info("Written to %s", own.directory)
    bad = [r for r in rows if r["error"]]
    if bad:
        raise UserError(f"{len(bad)} of {len(rows)} could not be read; the first: {bad[0]['image']}: {bad[0]['error']}")
    return {"images": len(rows), "device": hardware.describe(), "precision": hardware.precision}


def _files(images: list[str]) -> list[str]:
    if not images:
        raise UserError("no picture named: say sslrun predict image.jpg, or a folder")
    files: list[str] = []
    for name in images:
        path = Path(os.path.expanduser(name))
        if path.is_dir():
            inside = find_pictures(path)
            if not inside:
                raise UserError(f"no pictures in {path} (looked for .jpg .png .webp .bmp .gif .tif)")
            files += inside
        else:
            files.append(str(path))
    return files


def _batch(files: list[str], trained: Trained, device: Any, batch_size: int, top: int) -> list[dict[str, Any]]:
    dataset = trained.config["dataset"]

    def one(path: str) -> np.ndarray | str:
        try:
            return decode(path, dataset["image_size"], dataset["resize"], dataset["channels"])
        except UnreadableImage as error:
            return str(error)

    with ThreadPoolExecutor(cores()) as pool:
        found = list(pool.map(one, files))
    arrays = [f for f in found if not isinstance(f, str)]
    guesses: list[Any] = []
    if arrays:
        stack = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
        best = probabilities(trained.model, stack, device, batch_size).topk(min(top, len(trained.class_names)), 1)
        guesses = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    answers = iter(guesses)
    rows: list[dict[str, Any]] = []
    for path, result in zip(files, found, strict=True):
        if isinstance(result, str):
            rows.append({"image": path, "class": None, "confidence": None, "top": [], "error": result})
            continue
        ids, values = next(answers)
        named = [{"class": trained.class_names[i], "confidence": round(v, 4)} for i, v in zip(ids, values, strict=True)]
        rows.append({"image": path, **named[0], "top": named, "error": None})
    return rows


def _json(rows: list[dict[str, Any]]) -> str:
    return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"


def _csv(rows: list[dict[str, Any]]) -> str:
    deepest = max((len(r["top"]) for r in rows), default=0)
    names = [n for i in range(1, deepest + 1) for n in (f"class_{i}", f"confidence_{i}")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["image", *names, "error"])
    for r in rows:
        cells = [v for guess in r["top"] for v in (guess["class"], guess["confidence"])]
        writer.writerow([r["image"], *cells, *[""] * (len(names) - len(cells)), r["error"] or ""])
    return out.getvalue()


def _table(rows: list[dict[str, Any]]) -> str:
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
        table.add_row(Text(r["image"]), Text(r["class"]), f"{r['confidence']:.1%}", Text(others))
    console = Console(file=io.StringIO(), width=None if sys.stdout.isatty() else 160)
    with console.capture() as capture:
        console.print(table)
    return capture.get()
