"""`sslrun predict`: name what is on pictures."""

import csv
import io
import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from sslrun import report
from sslrun.classifier import probabilities
from sslrun.config import Count, Node, PositiveInt, UserError
from sslrun.console import log, progress
from sslrun.data.decode import decode_some, find_pictures
from sslrun.data.workers import cores, in_order, workers
from sslrun.device import Device
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
    began = time.perf_counter()
    rows = _rows(files, trained, hardware, batch_size, top)
    seconds = time.perf_counter() - began
    text = {"table": _table, "json": _json, "csv": _csv}[format](rows)
    for name, written in (("predictions.json", _json(rows)), ("predictions.csv", _csv(rows))):
        write_text(own.directory / name, written)
    report.prediction_figures(own, rows[:figures])
    sys.stdout.write(text)
    sys.stdout.flush()
    log.info(
        "%d pictures in %.1f s, %.0f images/s; written to %s", len(rows), seconds, len(rows) / seconds, own.directory
    )
    bad = [r for r in rows if r["error"]]
    if bad:
        raise UserError(f"{len(bad)} of {len(rows)} could not be read; the first: {bad[0]['image']}: {bad[0]['error']}")
    return {
        "images": len(rows),
        "device": hardware.describe(),
        "precision": hardware.precision,
        "images_per_second": round(len(rows) / seconds, 1),
    }


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


def _rows(files: list[str], trained: Trained, device: Device, batch_size: int, top: int) -> list[dict[str, Any]]:
    """Decode on all cores while the network looks at what is decoded; return a row for each file, in order."""
    dataset = trained.config["dataset"]
    at_once = max(1, min(batch_size, len(files) // (2 * cores())))
    batches = [files[i : i + at_once] for i in range(0, len(files), at_once)]
    size, resize, channels = dataset["image_size"], dataset["resize"], dataset["channels"]
    work = partial(decode_some, image_size=size, resize=resize, channels=channels)
    rows: list[dict[str, Any]] = []
    with workers(len(files)) as pool, progress("predicting", len(files), "images") as advance:
        for names, (block, reasons) in zip(batches, in_order(pool, work, batches), strict=True):
            best = probabilities(trained.model, torch.from_numpy(block).permute(0, 3, 1, 2), device, batch_size)
            guesses = best.topk(min(top, len(trained.class_names)), 1)
            for name, reason, ids, values in zip(
                names, reasons, guesses.indices.tolist(), guesses.values.tolist(), strict=True
            ):
                rows.append(_row(name, reason, trained.class_names, ids, values))
            advance(len(names))
    return rows


def _row(name: str, reason: str, class_names: list[str], ids: list[int], values: list[float]) -> dict[str, Any]:
    if reason:
        return {"image": name, "class": None, "confidence": None, "top": [], "error": reason}
    top = [{"class": class_names[i], "confidence": round(v, 4)} for i, v in zip(ids, values, strict=True)]
    return {"image": name, **top[0], "top": top, "error": None}


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
