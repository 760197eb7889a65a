"""Two-dimensional embeddings (t-SNE) by the networks of a study."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from sslrun.config.build import build
from sslrun.config.types import Node
from sslrun.data.dataset import Dataset
from sslrun.data.statistics import normalization
from sslrun.evaluation.projection import tsne
from sslrun.models.encoder import build_encoder
from sslrun.models.features import features
from sslrun.models.initialization import resolve

MAX_IMAGES = 1000  # per map


def embedding_maps(
    pretrained: Mapping[str, Path], backbone: Node, dataset: Node, device: Node, data: Dataset, labeled: Dataset
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return t-SNE maps of labeled images by the randomly initialized network and each pretrained one.

    Args:
        pretrained: run directories by name.
        backbone, dataset, device: nodes of the config.
        data: training data, for the normalization of the randomly initialized network.
        labeled: labeled images; at most 1,000 are drawn at random.

    Returns:
        `N x 2` by name of the network, `random initialization` first, and the N labels.
    """
    rows = torch.randperm(len(labeled), generator=torch.Generator().manual_seed(0))[:MAX_IMAGES].numpy()
    some = labeled.take(rows)
    hardware = build(device)
    hardware.claim()  # again, since runs of the study in this process may have changed the number of threads
    torch.manual_seed(0)
    encoders = {"random initialization": build_encoder(backbone, dataset["image_size"], *normalization(dataset, data))}
    for name, directory in pretrained.items():
        encoders[name] = resolve(str(directory), backbone, dataset, {}).encoder(data)
    maps = {}
    for name, encoder in encoders.items():
        hardware.put(encoder)
        maps[name] = tsne(features(encoder, some.images, hardware).numpy(), 0)
    assert some.labels is not None
    return maps, some.labels.numpy()
