"""`report.html` of a pretraining or finetuning: what was done, curves, views, neighbors, and the next command."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup

from sslrun.base.files import write_text
from sslrun.base.text import counted, duration, metric, percent
from sslrun.data.images import Images
from sslrun.device import Device
from sslrun.evaluation.metrics import has_collapsed
from sslrun.models.encoder import Encoder
from sslrun.models.features import features
from sslrun.report.html import render
from sslrun.report.sheets import Tile, contact_sheet
from sslrun.run.run import Run

QUERIES, NEIGHBORS, SEARCHED = 8, 7, 1024  # of the sheet of nearest neighbors; images among which they are


def publish(run: Run, sentences: Sequence[str], curves: str, following: str | None) -> Path:
    """Write `report.html` to the directory of a run whose result is noted.

    Args:
        sentences: what was done, in three lines.
        curves: as returned by `curves_figure`.
        following: the next command.
    """
    folder, summary = run.directory / "figures", run.summary
    text = render(
        "run.html.jinja",
        title=sentences[0],
        subtitle=str(run.directory),
        sentences=sentences[1:],
        curves=Markup(curves),
        health=health_text(summary),
        images=[(alt, name, _encoded(folder / f"{name}.png")) for alt, name in _drawn(folder)],
        following=following,
        command=run.command,
    )
    path = run.directory / "report.html"
    write_text(path, text)
    return path


def pretraining_text(summary: dict[str, Any], image_size: int) -> list[str]:
    """Return what a pretraining did, in three lines."""
    speed = summary.get("images_per_second")
    rate = f", {speed:,.0f} images/s" if speed else ""
    last = [metric(k, summary[k]) for k in ("train/loss", "val/knn_accuracy") if k in summary]
    return [
        f"{summary['backbone']}, pretrained with {summary['pretext']}",
        f"On {counted(summary['images'], 'image')} of {summary['dataset']} at {image_size} px, without labels: "
        f"{counted(summary.get('best/step', 0), 'step')}{rate}; on {summary['device']}, {summary['precision']}.",
        f"At the end: {', '.join(last)}." if last else "",
    ]


def finetuning_text(summary: dict[str, Any], image_size: int) -> list[str]:
    """Return what a finetuning did, in three lines."""
    total, val = summary["labels_total"], summary["labels_val"]
    how = f"on {val:,} validation labels" if val else "out of fold, corrected for the choice"
    accuracy = summary.get("val/accuracy")
    score = f"accuracy {percent(accuracy)} {how}" if accuracy is not None else "no estimate of the accuracy"
    candidates = summary.get("candidates", {})
    seconds = summary.get("training_seconds")
    chosen = summary.get("chosen", summary["mode"])
    how_trained = f" ({chosen})" if chosen != summary["init"] else ""
    compared = ", ".join(f"{name} {percent(value)}" for name, value in candidates.items())
    return [
        f"Classifier from {counted(total, 'label')}: {score}",
        f"{summary['backbone']} from {summary['init']}{how_trained} on "
        f"{summary['dataset']} at {image_size} px{f', in {duration(seconds)}' if seconds else ''}; on "
        f"{summary['device']}, {summary['precision']}.",
        f"Compared by {'macro F1' if summary['config'].get('balance', 'none') != 'none' else 'accuracy'}: {compared}."
        if len(candidates) > 1
        else "",
    ]


def health_text(summary: dict[str, Any]) -> str:
    """Return in words whether the features of a pretraining differ from image to image; empty if not measured."""
    spread, rank = summary.get("val/feature_spread"), summary.get("val/effective_rank")
    if spread is None or rank is None:
        return ""
    health = {"feature_spread": spread, "effective_rank": rank}
    collapsed = has_collapsed(health, summary["images"]) if "images" in summary else has_collapsed(health)
    state = "The features have collapsed: they hardly differ from image to image" if collapsed else "No collapse"
    return (
        f"{state}. Feature spread {spread:.2f} (0: the same for all images, 1: even), effective rank {rank:.0f}: the "
        f"number of independent directions in which they vary.{_between_views(summary)}"
    )


def _between_views(summary: dict[str, Any]) -> str:
    alignment, uniformity = summary.get("val/alignment"), summary.get("val/uniformity")
    if alignment is None or uniformity is None:
        return ""
    return (
        f" Alignment {alignment:.2f} (squared distance of two views of an image; 0: equal, 2: unrelated), uniformity "
        f"{uniformity:.1f} (0: all images equal, about -4: spread evenly)."
    )


def neighbors_figure(
    run: Run, encoder: Encoder, images: Images, names: Sequence[str], device: Device, seed: int
) -> None:
    """Draw random images, each followed by the most similar ones by the cosine similarity of their features.

    Args:
        images: N images; about 1,024 of them are compared.
        names: of the images, or none.
    """
    if len(images) < 3:
        return
    rows = np.arange(0, len(images), max(1, len(images) // SEARCHED))
    encoder.eval()
    with torch.no_grad():
        found = torch.nn.functional.normalize(features(encoder, images[torch.from_numpy(rows)], device), dim=1)
    queries = np.random.default_rng(seed).permutation(len(rows))[:QUERIES]
    similarity = (found[torch.from_numpy(queries)] @ found.T).numpy()
    tiles: list[list[Tile]] = []
    for query, row in zip(queries, similarity, strict=True):
        others = [i for i in np.argsort(-row, kind="stable") if i != query][:NEIGHBORS]
        pixels = images[torch.from_numpy(rows[[query, *others]])].permute(0, 2, 3, 1).numpy()
        texts = [Path(names[rows[i]]).name if len(names) else "" for i in (query, *others)]
        similar = ["", *(f"{row[i]:.2f}" for i in others)]
        tiles.append([(p, text, value) for p, text, value in zip(pixels, texts, similar, strict=True)])
    path = run.figure("neighbors")
    contact_sheet(tiles).save(path)
    run.log.image("neighbors", path)


def _drawn(folder: Path) -> list[tuple[str, str]]:
    known = {
        "views": "Views of images that the network was trained on",
        "outputs": "Images, and what the network makes of them",
        "neighbors": "Nearest neighbors",
    }
    return [(alt, name) for name, alt in known.items() if (folder / f"{name}.png").is_file()]


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
