"""A training: the views that the network is shown, and its curves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslrun.augment import Rng
from sslrun.data.images import Images
from sslrun.device import Device
from sslrun.report.sheets import whole_image
from sslrun.report.style import new_figure, styled
from sslrun.runs.log import read_metrics
from sslrun.runs.run import Run
from sslrun.tasks.task import Task

VIEWS_SHOWN = 8


def some_of(images: Tensor | Images, seed: int) -> Tensor:
    """Choose the pictures that a run draws with their views."""
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:VIEWS_SHOWN]]


def views_figure(run: Run, task: Task, images: Tensor, seed: int, files: Sequence[str] = ()) -> Path | None:
    """Draw pictures beside what the network is shown of them, as a figure and for TensorBoard.

    Args:
        images: `N x 3 x S x S`, uint8.
        files: that they were decoded from, drawn beside them whole; none for arrays.

    Returns:
        The path of the figure; None for a task without views.
    """
    originals = images.float() / 255
    with torch.no_grad():
        views = task.views(originals, Rng(torch.Generator().manual_seed(seed)))
    return _drawn(run, "views", originals, views, files) if views else None


def task_figures(run: Run, task: Task, images: Tensor, seed: int, device: Device) -> None:
    """Draw each figure of a trained task beside the pictures that it is of; most tasks have none.

    Args:
        images: `N x 3 x S x S`, uint8.
    """
    task.eval()
    with torch.no_grad():
        figures = task.figures(device.floats(images), Rng(torch.Generator().manual_seed(seed)))
    for name, made in figures.items():
        _drawn(run, name, images.float() / 255, {name: made})


@styled()
def _drawn(
    run: Run, figure_name: str, originals: Tensor, columns: dict[str, Tensor], files: Sequence[str] = ()
) -> Path:
    """Draw pictures in rows, each beside what belongs to it, and return the path."""
    columns = {f"{originals.shape[-1]} px": originals, **columns}
    shown: dict[str, Any] = {
        name: [p.permute(1, 2, 0).clamp(0, 1).cpu().numpy() for p in images] for name, images in columns.items()
    }
    if files:
        shown = {"file": [whole_image(f) for f in files], **shown}
    size = (1.2 * len(shown), 1.2 * len(originals) + 0.3)
    figure, axes = new_figure(len(originals), len(shown), size)
    for j, (name, images) in enumerate(shown.items()):
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
def curves_figure(run: Run) -> None:
    """Draw loss and accuracy over the steps from `metrics.jsonl`."""
    rows = read_metrics(run.directory)
    figure, (axes,) = new_figure(1, 2, (9, 3.2))
    for axis, word in zip(axes, ("loss", "accuracy"), strict=True):
        names = sorted({k for r in rows for k in r if k.endswith(word)})
        for name in names:
            points = [(r["step"], r[name]) for r in rows if name in r]
            axis.plot(
                *zip(*points, strict=True),
                label=name.replace("_", " "),
                marker="." if len(points) < 40 else None,
            )
        axis.set_xlabel("step")
        axis.set_ylabel(word)
        if names:
            axis.legend(frameon=False)
    axes[1].set_ylim(0, 1.02)
    figure.tight_layout()
    figure.savefig(run.figure("curves"))
