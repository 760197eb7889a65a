"""`sslrun data preview`: draw what a network is shown."""

from typing import Any

import numpy as np
import torch

from sslrun.backbones import build_encoder
from sslrun.config import Count, DatasetNode, Node, PositiveInt, UserError, build
from sslrun.console import log
from sslrun.data.cache import resized
from sslrun.data.dataset import describe, find, shared
from sslrun.data.decode import UnreadableImage, decode
from sslrun.report import figures
from sslrun.run import Run


def preview(
    run: Run, *, dataset: DatasetNode, pretext: Node, backbone: Node, images: PositiveInt, seed: Count
) -> dict[str, Any]:
    """Draw some training pictures as they lie on disk, as they are decoded, and as the pretext task turns them.

    Returns:
        What goes into the summary.

    Raises:
        UserError: no picture could be read.
    """
    pictures = find(dataset, "train")
    assert pictures is not None
    options = shared(dataset)
    order = np.random.default_rng(seed).permutation(len(pictures.names))
    files: list[str] = []
    if isinstance(pictures.items, np.ndarray):
        chosen = resized(pictures.items[order[:images]], options.image_size, options.channels)
    else:
        decoded = []
        for i in order:
            try:
                decoded.append(decode(pictures.items[i], options.image_size, options.resize, options.channels))
                files.append(pictures.items[i])
            except UnreadableImage as error:
                log.warning("Skipped %s: %s", pictures.items[i], error)
            if len(decoded) == images:
                break
        if not decoded:
            raise UserError(f"no picture of {describe(dataset)} can be read")
        chosen = np.stack(decoded)
    encoder = build_encoder(backbone, options.image_size, [0.5] * 3, [0.5] * 3)
    model = build(pretext, encoder, options.image_size)
    batch = torch.from_numpy(chosen).permute(0, 3, 1, 2)
    path = figures.views_figure(run, model, batch, seed, files)
    print(path)
    return {"dataset": describe(dataset), "images": len(batch), "figure": str(path)}
