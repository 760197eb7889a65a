"""Figures of a training: views, figures of the task, and training curves."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslrun.augment import Rng
from sslrun.base.machine import is_first
from sslrun.base.text import is_share, words
from sslrun.data.depth import Range
from sslrun.data.images import Images
from sslrun.device import Device
from sslrun.report.sheets import whole_image
from sslrun.report.style import new_figure, page_figure, save_figure, styled
from sslrun.run.log import METRICS, read_metrics
from sslrun.run.run import Run
from sslrun.tasks.task import Task

VIEWS_SHOWN = 8
PARTS = {"train": "training", "val": "evaluation"}
NO_CURVE = ("temperature", "images", "certified", "correct", "accepted", "confidence", "threshold")  # ends of metrics


def sample_images(images: Tensor | Images, seed: int) -> Tensor:
    """Return the images whose views are drawn for a run, chosen at random."""
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:VIEWS_SHOWN]]


def views_figure(
    run: Run, task: Task, images: Tensor, seed: int, files: Sequence[str] = (), gray_range: Range | None = None
) -> Path | None:
    """Draw images and their views to a figure and to TensorBoard.

    Args:
        images: `N x 3 x S x S`, uint8.
        files: image files, which are also drawn uncropped; empty for arrays.
        gray_range: of the files, see `decode`.

    Returns:
        The path of the figure; None for a task without views, and in other processes than the first.
    """
    if not is_first():
        return None
    originals = images.float() / 255
    with torch.no_grad():
        views = task.views(originals, Rng(torch.Generator().manual_seed(seed)))
    if not views:
        return None
    whole = [whole_image(f, gray_range=gray_range) for f in files]
    return _draw_columns(run, "views", originals, views, whole)


def task_figures(run: Run, task: Task, images: Tensor, seed: int, device: Device) -> None:
    """Draw what a trained task makes of some images next to them; most tasks draw nothing.

    Args:
        images: `N x 3 x S x S`, uint8.
    """
    task.eval()
    with torch.no_grad(), device.eager():
        figures = task.figures(device.floats(images), Rng(torch.Generator().manual_seed(seed)))
    if figures:
        _draw_columns(run, "outputs", images.float() / 255, figures)


@styled()
def _draw_columns(
    run: Run, figure_name: str, originals: Tensor, columns: dict[str, Tensor], whole: Sequence[np.ndarray] = ()
) -> Path:
    """Draw one row per image, with a column for each of `columns` and one for whole files; return the figure's path."""
    columns = {f"{originals.shape[-1]} px": originals, **columns}
    grid: dict[str, Any] = {
        name: [p.permute(1, 2, 0).clamp(0, 1).cpu().numpy() for p in images] for name, images in columns.items()
    }
    if whole:
        grid = {"file": list(whole), **grid}
    size = (1.2 * len(grid), 1.2 * len(originals) + 0.3)
    figure, axes = new_figure(len(originals), len(grid), size)
    for j, (name, images) in enumerate(grid.items()):
        axes[0][j].set_title(name)
        for i, image in enumerate(images):
            axes[i][j].imshow(image, interpolation="nearest")
            axes[i][j].axis("off")
    figure.tight_layout(pad=0.3)
    path = run.figure(figure_name)
    figure.savefig(path)
    run.log.image(figure_name, path)
    return path


@styled()
def curves_figure(run: Run) -> str:
    """Draw up to four metrics of training, and of evaluations, over the steps, a row of panels for each.

    Returns:
        The SVG for a page; empty if no metric was measured at two steps.
    """
    rows = read_metrics(run.directory) if (run.directory / METRICS).is_file() else []
    measured = Counter(k for r in rows for k in r if not k.endswith(NO_CURVE))
    kinds = {part: sorted(k for k, n in measured.items() if n > 1 and k.startswith(f"{part}/"))[:4] for part in PARTS}
    kinds = {part: names for part, names in kinds.items() if names}
    if not kinds:
        return ""
    columns = max(map(len, kinds.values()))
    figure, axes = page_figure(len(kinds), columns, (2.6 * columns + 0.4, 2.1 * len(kinds)))
    for line, (part, names) in zip(axes, kinds.items(), strict=True):
        for axis in line[len(names) :]:
            axis.axis("off")
        for axis, name in zip(line[: len(names)], names, strict=True):
            scale, unit = (100, " (%)") if is_share(name) else (1, "")
            points = [(r["step"], scale * r[name]) for r in rows if name in r]
            axis.plot(*zip(*points, strict=True), marker="." if len(points) < 40 else None, linewidth=1.4)
            axis.set_title(f"{PARTS[part]}: {words(name.partition('/')[2])}{unit}", fontsize=9)
            axis.set_xlabel("step")
            axis.xaxis.get_major_locator().set_params(integer=True, nbins=5)
    figure.tight_layout()
    return save_figure(figure, run.directory / "figures", "curves")
