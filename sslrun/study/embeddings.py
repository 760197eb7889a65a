"""Embeddings of a study's networks in two dimensions."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from sslrun.config.build import build
from sslrun.config.types import Node
from sslrun.data.dataset import Dataset
from sslrun.data.statistics import normalization
from sslrun.evaluation.features import features
from sslrun.evaluation.projection import tsne
from sslrun.models.encoder import build_encoder
from sslrun.models.initialization import resolve

SHOWN = 1000  # pictures of a map


def embedding_maps(
    pretrained: Mapping[str, Path], backbone: Node, dataset: Node, device: Node, data: Dataset, shown: Dataset
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return t-SNE maps of some pictures by the untrained network and by each pretrained one.

    Args:
        pretrained: run directories by name.
        data: training, for the normalisation of the untrained network.
        shown: labeled pictures; at most 1,000 of them are taken.

    Returns:
        `N x 2` by the network's name, `untrained` first, and the N labels.
    """
    rows = torch.randperm(len(shown), generator=torch.Generator().manual_seed(0))[:SHOWN].numpy()
    some = shown.take(rows)
    hardware = build(device)
    hardware.claim()  # again: runs of the study in this process may have had other threads
    torch.manual_seed(0)
    encoders = {"untrained": build_encoder(backbone, dataset["image_size"], *normalization(dataset, data))}
    for name, directory in pretrained.items():
        encoders[name] = resolve(str(directory), backbone, dataset, {}).encoder(data)
    maps = {}
    for name, encoder in encoders.items():
        hardware.put(encoder)
        maps[name] = tsne(features(encoder, some.images, hardware).numpy(), 0)
    assert some.labels is not None
    return maps, some.labels.numpy()
