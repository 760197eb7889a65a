"""`sslrun data preview`: draw the views that a pretext task makes of training images."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.config.types import Count, PositiveInt
from sslrun.data.cache import resized
from sslrun.data.dataset import limits_of, listed, with_range
from sslrun.data.decode import UnreadableImage, decode
from sslrun.data.options import DatasetNode, describe, shared
from sslrun.models.encoder import BackboneNode, build_encoder
from sslrun.report.training import views_figure
from sslrun.run.run import Run
from sslrun.tasks.task import TaskNode, build_task


@dataclass(frozen=True, kw_only=True)
class Preview:
    """Settings of `sslrun data preview`, documented in conf/preview.yaml."""

    dataset: DatasetNode
    pretext: TaskNode
    backbone: BackboneNode
    images: PositiveInt
    seed: Count


def preview(run: Run, settings: Preview) -> dict[str, Any]:
    """Draw some training images: the original files, the decoded images, and the views of the pretext task.

    Returns:
        Entries of the run's summary.

    Raises:
        UserError: no image could be read, or the pretext task has no views.
    """
    dataset = with_range(settings.dataset)
    run.resolve(dataset=dataset)
    listing = listed(dataset, "train")
    assert listing is not None
    options = shared(dataset)
    limits = limits_of(options)
    order = np.random.default_rng(settings.seed).permutation(len(listing.names))
    files: list[str] = []
    if isinstance(listing.items, np.ndarray):
        chosen = resized(listing.items[order[: settings.images]], options.image_size, options.channels)
    else:
        decoded = []
        for i in order:
            try:
                decoded.append(decode(listing.items[i], options.image_size, options.resize, options.channels, limits))
                files.append(listing.items[i])
            except UnreadableImage as error:
                log.warning("Skipped %s: %s", listing.items[i], error)
            if len(decoded) == settings.images:
                break
        if not decoded:
            raise UserError(f"no image of {describe(settings.dataset)} can be read")
        chosen = np.stack(decoded)
    encoder = build_encoder(settings.backbone, options.image_size, [0.5] * 3, [0.5] * 3)
    task = build_task(settings.pretext, encoder, options.image_size)
    task.set_sizes(len(listing.names), len(listing.names))
    batch = torch.from_numpy(chosen).permute(0, 3, 1, 2)
    path = views_figure(run, task, batch, settings.seed, files, limits)
    if path is None:
        raise UserError(f"{settings.pretext['_target_']} has no views to draw; define views(images, rng)")
    print(path)
    return {"dataset": describe(settings.dataset), "images": len(batch), "figure": str(path)}
