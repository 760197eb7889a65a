"""Sheets of images: contact sheets, predictions, mistakes."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from sslrun.base.text import percent
from sslrun.data.decode import opened, to_rgb
from sslrun.data.images import Images
from sslrun.runs.run import Run

MISTAKES_SHOWN, TILE_SIDE = 24, 96  # pictures, and the px of one on a contact sheet
Tile = tuple[str | np.ndarray, *tuple[str, ...]]
FIGURE_SIDE = 480  # px of a predicted picture


def whole_image(path: str, side: int = 400) -> np.ndarray:
    """Return a picture file as it is decoded, but uncropped, at most `side` px."""
    with opened(path) as image:
        image.draft("RGB", (2 * side, 2 * side))
        shown = to_rgb(image)
    shown.thumbnail((side, side))
    return np.asarray(shown)


def mistakes_figure(
    run: Run, images: Images, labels: np.ndarray, probabilities: np.ndarray, class_names: list[str]
) -> None:
    """Draw the wrong predictions that were made most confidently, the worst first; nothing where there are none.

    Args:
        images: N of them.
        labels: N.
        probabilities: `N x classes`.
    """
    predicted, sure = probabilities.argmax(1), probabilities.max(1)
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-sure[wrong], kind="stable")][:MISTAKES_SHOWN]
    if not len(worst):
        return
    tiles = []
    for i in worst:
        text, true = (_short(class_names[k]) for k in (predicted[i], labels[i]))
        pixels = images[torch.tensor([i])][0].permute(1, 2, 0).numpy()
        tiles.append((pixels, f"{text} {percent(sure[i])}", f"is {true}"))
    sheet = contact_sheet([tiles[i : i + 8] for i in range(0, len(tiles), 8)])
    path = run.figure("mistakes")
    sheet.save(path)
    run.log.image("mistakes", path)


def contact_sheet(rows: Sequence[Sequence[Tile]]) -> Image.Image:
    """Draw rows of pictures, each below one or two lines of text.

    Args:
        rows: of (picture, line, ...); a picture is a file, or `H x W x 3`, uint8.
    """
    lines = max(len(tile) for row in rows for tile in row) - 1
    width, height = TILE_SIDE + 16, TILE_SIDE + 14 + 13 * lines
    sheet = Image.new("RGB", (width * max(map(len, rows)), height * len(rows)), "white")
    draw, font = ImageDraw.Draw(sheet), _font(11)
    for j, row in enumerate(rows):
        for i, (image, *text) in enumerate(row):
            x, y = width * i + 8, height * j + 6 + 13 * lines
            for k, line in enumerate(text):
                draw.text((x, y - 2 + 13 * (k - len(text))), line, "#606060" if k else "black", font)
            shown = Image.fromarray(whole_image(image, 2 * TILE_SIDE) if isinstance(image, str) else image)
            times = TILE_SIDE / max(shown.size)
            how = Image.Resampling.NEAREST if times > 1 else Image.Resampling.LANCZOS
            small = shown.resize([max(1, round(times * s)) for s in shown.size], how)
            sheet.paste(small, (x + (TILE_SIDE - small.width) // 2, y + (TILE_SIDE - small.height) // 2))
    return sheet


def _short(text: str) -> str:
    return text if len(text) <= 13 else f"{text[:8]}…{text[-4:]}"


def prediction_figures(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Draw each picture with its prediction as the title; Pillow starts half a second sooner than matplotlib."""
    folder.mkdir(exist_ok=True)
    for i, row in enumerate(r for r in rows if not r["error"]):
        image = Image.fromarray(whole_image(row["image"], FIGURE_SIDE))
        times = FIGURE_SIDE / max(image.size)
        if times > 1:
            image = image.resize([max(1, int(times * s)) for s in image.size], Image.Resampling.NEAREST)
        titled = Image.new("RGB", (FIGURE_SIDE + 20, image.height + 50), "white")
        titled.paste(image, ((titled.width - image.width) // 2, 40))
        doubt = "  unsure" if row["unsure"] else ""
        title, font = _title(f"{row['class']}  {percent(row['confidence'])}{doubt}", FIGURE_SIDE)
        ImageDraw.Draw(titled).text((titled.width / 2, 20), title, "black", font, anchor="mm")
        titled.save(folder / f"{i:03d}_{Path(row['image']).stem[:60]}.png")


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font that matplotlib brings."""
    package = importlib.util.find_spec("matplotlib")
    assert package is not None
    assert package.origin is not None
    return ImageFont.truetype(Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _title(text: str, width: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """Return a text, with its middle left out if it is wider than so many px, and a font for it."""
    font = _font(18)
    text = " ".join(text.splitlines())
    shown, cut = text, len(text) // 2
    while font.getlength(shown) > width and cut > 1:
        cut -= 1
        shown = f"{text[:cut]}…{text[-cut:]}"
    return shown, font
