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
from sslrun.data.depth import Range
from sslrun.data.images import Images
from sslrun.report.style import font_file
from sslrun.run.run import Run

MISTAKES_SHOWN = 24
TILE_SIDE = 96  # px of an image on a contact sheet
Tile = tuple[str | np.ndarray, *tuple[str, ...]]
LAST_OF_DEJAVU = "\u2e7f"  # Chinese, Japanese and Korean characters come after it
FIGURE_SIDE = 480  # px of an image with its prediction


def whole_image(path: str, side: int = 400, gray_range: Range | None = None) -> np.ndarray:
    """Return an image file decoded (see `decode`) but not cropped, downsampled to at most `side` px."""
    with opened(path) as file:
        file.draft("RGB", (2 * side, 2 * side))
        image, _ = to_rgb(file, gray_range)
    image.thumbnail((side, side))
    return np.asarray(image)


def mistakes_figure(
    run: Run, images: Images, labels: np.ndarray, probabilities: np.ndarray, class_names: list[str]
) -> None:
    """Draw the misclassified images with the highest confidence in descending order; no figure if there are none.

    Args:
        images: N images.
        labels: N class indices.
        probabilities: `N x classes`.
    """
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:MISTAKES_SHOWN]
    if not len(worst):
        return
    tiles = []
    for i in worst:
        text, true = class_names[predicted[i]], class_names[labels[i]]
        pixels = images[torch.tensor([i])][0].permute(1, 2, 0).numpy()
        tiles.append((pixels, text, f"conf. {percent(confidence[i])}", f"true: {true}"))
    sheet = contact_sheet([tiles[i : i + 8] for i in range(0, len(tiles), 8)])
    path = run.figure("mistakes")
    sheet.save(path)
    run.log.image("mistakes", path)


def contact_sheet(rows: Sequence[Sequence[Tile]], gray_range: Range | None = None) -> Image.Image:
    """Draw rows of images, each below its lines of text, which are elided to the width of an image.

    Args:
        rows: tiles (image, line, ...); an image is a path or an array `H x W x 3`, uint8.
        gray_range: of image files, see `decode`.
    """
    lines = max(len(tile) for row in rows for tile in row) - 1
    width, height = TILE_SIDE + 16, TILE_SIDE + 14 + 13 * lines
    sheet = Image.new("RGB", (width * max(map(len, rows)), height * len(rows)), "white")
    every = "".join(line for row in rows for _, *text in row for line in text)
    draw, font = ImageDraw.Draw(sheet), _font(11, every)
    for j, row in enumerate(rows):
        for i, (source, *text) in enumerate(row):
            x, y = width * i + 8, height * j + 6 + 13 * lines
            for k, line in enumerate(text):
                fitting = _elided(line, TILE_SIDE, font)
                draw.text((x, y - 2 + 13 * (k - len(text))), fitting, "#606060" if k else "black", font)
            array = whole_image(source, 2 * TILE_SIDE, gray_range) if isinstance(source, str) else source
            image = Image.fromarray(array)
            scale = TILE_SIDE / max(image.size)
            filter_ = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
            small = image.resize([max(1, round(scale * s)) for s in image.size], filter_)
            sheet.paste(small, (x + (TILE_SIDE - small.width) // 2, y + (TILE_SIDE - small.height) // 2))
    return sheet


def prediction_figures(rows: Sequence[dict[str, Any]], folder: Path, gray_range: Range | None = None) -> None:
    """Draw each image with its prediction as the title, with Pillow, which imports faster than matplotlib.

    Args:
        rows: of `predictions.json`.
        gray_range: of the images, see `decode`.
    """
    folder.mkdir(exist_ok=True)
    for i, row in enumerate(r for r in rows if not r["error"]):
        image = Image.fromarray(whole_image(row["image"], FIGURE_SIDE, gray_range))
        scale = FIGURE_SIDE / max(image.size)
        if scale > 1:
            image = image.resize([max(1, int(scale * s)) for s in image.size], Image.Resampling.NEAREST)
        titled = Image.new("RGB", (FIGURE_SIDE + 20, image.height + 50), "white")
        titled.paste(image, ((titled.width - image.width) // 2, 40))
        doubt = "  unlike training" if row["unlike_training"] else "  unsure" if row["unsure"] else ""
        title, font = _title(f"{row['class']}  {percent(row['confidence'])}{doubt}", FIGURE_SIDE)
        ImageDraw.Draw(titled).text((titled.width / 2, 20), title, "black", font, anchor="mm")
        titled.save(folder / f"{i:03d}_{Path(row['image']).stem[:60]}.png")


def _font(size: int, text: str = "") -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans from the files of matplotlib, or another font if the text has characters that it lacks."""
    if max(text, default="") > LAST_OF_DEJAVU:
        return ImageFont.truetype(font_file(text), size)
    package = importlib.util.find_spec("matplotlib")
    assert package is not None
    assert package.origin is not None
    return ImageFont.truetype(Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _title(text: str, width: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """Return a text, elided to `width` px, and its font."""
    text = " ".join(text.splitlines())
    font = _font(18, text)
    return _elided(text, width, font), font


def _elided(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """Return a text, with its middle elided if it is wider than `width` px."""
    short, cut = text, len(text) // 2
    while font.getlength(short) > width and cut > 1:
        cut -= 1
        short = f"{text[:cut]}…{text[-cut:]}"
    return short
