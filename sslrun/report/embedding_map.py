"""Maps of embeddings (t-SNE): a PNG, and a page that shows each image on hover."""

import base64
import io
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sslrun.base.console import printable
from sslrun.base.files import write_text
from sslrun.base.text import counted
from sslrun.data.cache import decode_all
from sslrun.data.depth import Range
from sslrun.data.layout import UNLABELED, role_of
from sslrun.evaluation.projection import tsne
from sslrun.report.html import render
from sslrun.report.style import COLORS, GRAY, new_figure, styled
from sslrun.run.run import Run

SIDE = 64  # px of an image
GROUPS = 12  # folders with a color of their own; the others are gray
MIN_DISTANCE = 0.045  # between images on the PNG, as a fraction of the map's width


def folders_of(files: Sequence[str]) -> list[str]:
    """Return the folder of each file relative to their common parent: the class, if there is one folder per class."""
    folders = [os.path.dirname(os.path.abspath(f)) for f in files]
    top = os.path.commonpath(folders) if folders else ""
    return ["" if f == top else printable(os.path.relpath(f, top)) for f in folders]


def publish(
    own: Run,
    files: Sequence[str],
    features: np.ndarray,
    groups: Sequence[str],
    seed: int,
    gray_range: Range | None = None,
) -> Path:
    """Draw `figures/map.png` and `map.html` in a run's directory.

    Args:
        own: the run.
        files: N image files.
        features: `N x D`.
        groups: N group names, which determine the colors.
        seed: of t-SNE.
        gray_range: of the files, see `decode`.

    Returns:
        The path of the page.
    """
    points = tsne(features, seed)
    points = (points - points.min(0)) / np.ptp(points, 0).max().clip(1e-12)
    height = float(points[:, 1].max().clip(0.2))
    small = decode_all(files, SIDE, "crop", "rgb", gray_range).array
    frequent = [g for g, _ in Counter(groups).most_common(GROUPS)] if len(set(groups)) > 1 else []
    labeled = sorted(g for g in frequent if not _is_unlabeled(g))
    tint = {g: _color(i) for i, g in enumerate(labeled)} | {g: GRAY for g in frequent if _is_unlabeled(g)}
    _png(own.figure("map"), points, small, groups, tint)
    columns = int(np.ceil(len(files) ** 0.5))
    text = render(
        "map.html.jinja",
        title=f"Embedding map of {counted(len(files), 'image')}",
        subtitle="t-SNE of the features: images with similar features are close together. Hover over a point to see "
        "its image.",
        images=[
            {
                "x": round(float(x), 4),
                "y": round(float(1 - y / height), 4),
                "name": f,
                "group": g,
                "color": tint.get(g, GRAY),
            }
            for (x, y), f, g in zip(points, files, groups, strict=True)
        ],
        legend=tint,
        sprite=_sprite(small, columns),
        columns=columns,
        side=SIDE,
        height=height,
        command=own.command,
    )
    path = own.directory / "map.html"
    write_text(path, text)
    return path


def _is_unlabeled(group: str) -> bool:
    return any(role_of(name) == UNLABELED for name in group.split("/"))


def _color(i: int) -> str:
    second = ("#6a3d9a", "#b15928", "#999933", "#882255", "#44aa99", "#117733")
    return (*COLORS, *second)[i]


def _sprite(small: np.ndarray, columns: int) -> str:
    """Return all images as one JPEG sprite, row by row, in base64."""
    rows = -(-len(small) // columns)
    sheet = np.full((rows * columns, SIDE, SIDE, 3), 255, np.uint8)
    sheet[: len(small)] = small
    whole = sheet.reshape(rows, columns, SIDE, SIDE, 3).swapaxes(1, 2).reshape(rows * SIDE, columns * SIDE, 3)
    out = io.BytesIO()
    Image.fromarray(whole).save(out, "JPEG", quality=85)
    return base64.b64encode(out.getvalue()).decode()


@styled()
def _png(path: Path, points: np.ndarray, small: np.ndarray, groups: Sequence[str], tint: dict[str, str]) -> None:
    """Draw a point per image, and thumbnails where they do not overlap."""
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    figure, ((axis,),) = new_figure(1, 1, (9, 9 + 0.25 * -(-len(tint) // 4)))
    shades = [tint.get(g, GRAY) for g in groups]
    order = sorted(range(len(points)), key=lambda i: shades[i] != GRAY)  # gray ones below the others
    axis.scatter(*points[order].T, s=14, c=[shades[i] for i in order], linewidths=0)
    thumbnails: list[int] = []
    for i in np.random.default_rng(0).permutation(len(points)):  # a random order, so that no folder is preferred
        if all(np.abs(points[j] - points[i]).max() > MIN_DISTANCE for j in thumbnails):
            thumbnails.append(i)
            frame = {"edgecolor": shades[i], "linewidth": 1.5, "boxstyle": "square,pad=0"}
            axis.add_artist(AnnotationBbox(OffsetImage(small[i], zoom=0.4), points[i], bboxprops=frame, pad=0))
    axis.set_title(f"t-SNE of the features of {counted(len(points), 'image')}")
    axis.set_aspect("equal")
    axis.axis("off")
    for g, color in tint.items():
        axis.scatter([], [], s=40, c=color, label=f"\u200b{g}")  # labels that begin with _ are not shown
    if tint:
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=4, frameon=False)
    figure.tight_layout(pad=0.5)
    figure.savefig(path, bbox_inches="tight")
