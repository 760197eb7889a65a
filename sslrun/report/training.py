"""A training: the views that the network is shown, and its curves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslrun.augment import Rng
from sslrun.data.images import Images
from sslrun.report.sheets import whole_file
from sslrun.report.style import new_figure
from sslrun.runs.log import read_metrics
from sslrun.runs.run import Run

VIEWS_SHOWN = 8


def some_of(images: Tensor | Images, seed: int) -> Tensor:
    """Choose the pictures that a run draws with their views."""
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:VIEWS_SHOWN]]


def views_figure(run: Run, model: nn.Module, images: Tensor, seed: int, files: Sequence[str] = ()) -> Path:
    """Draw pictures beside what the network is shown of them, as a figure and for TensorBoard.

    Args:
        images: `N x 3 x S x S`, uint8.
        files: that they were decoded from, drawn beside them whole; none for arrays.

    Returns:
        The path of the figure.
    """
    originals = images.float() / 255
    with torch.no_grad():
        views = model.views(originals, Rng(torch.Generator().manual_seed(seed)))  # type: ignore[operator]
    columns: dict[str, Any] = {f"{originals.shape[-1]} px": originals, **views}
    shown = {name: [p.permute(1, 2, 0).clamp(0, 1).numpy() for p in pictures] for name, pictures in columns.items()}
    if files:
        shown = {"file": [whole_file(f) for f in files], **shown}
    size = (1.2 * len(shown), 1.2 * len(originals) + 0.3)
    figure, axes = new_figure(len(originals), len(shown), size)
    for j, (name, pictures) in enumerate(shown.items()):
        axes[0][j].set_title(name)
        for i, picture in enumerate(pictures):
            axes[i][j].imshow(picture, interpolation="nearest")
            axes[i][j].axis("off")
    figure.tight_layout(pad=0.3)
    path = run.figure("views")
    figure.savefig(path)
    run.log.image("views", path)
    return path


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
