"""Embeddings in two dimensions."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from sslrun.backbones import build_encoder, features
from sslrun.config import Node, build
from sslrun.data.dataset import Dataset
from sslrun.start import encoder_at, find_start, normalization

SHOWN = 1000  # pictures of a map
SAME = 1e-6  # features that differ by less are equal
PERPLEXITY = 30.0  # van der Maaten & Hinton 2008: 5 to 50


def embedding_maps(
    pretrained: Mapping[str, Path], backbone: Node, dataset: Node, device: Node, data: Dataset, shown: Dataset
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return t-SNE maps of some pictures by the untrained network and by each pretrained one.

    Args:
        pretrained: run directories by name.
        data: training, for the normalisation of the untrained network.
        shown: labelled pictures; at most 1,000 of them are taken.

    Returns:
        `N x 2` by the network's name, `untrained` first, and the N labels.
    """
    rows = torch.randperm(len(shown), generator=torch.Generator().manual_seed(0))[:SHOWN].numpy()
    some = shown.take(rows)
    hardware = build(device)
    torch.manual_seed(0)
    encoders = {"untrained": build_encoder(backbone, dataset["image_size"], *normalization(dataset, data))}
    for name, directory in pretrained.items():
        encoders[name] = encoder_at(find_start(str(directory), backbone, dataset), backbone, dataset, data)
    maps = {}
    for name, encoder in encoders.items():
        hardware.put(encoder)
        maps[name] = tsne(features(encoder, some.images, hardware).numpy(), 0)
    assert some.labels is not None
    return maps, some.labels.numpy()


def tsne(features: np.ndarray, seed: int) -> np.ndarray:
    """Return a t-SNE map, `N x 2`, of the l2-normalised features, `N x D`; of features that are all equal, noise."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    x = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    if len(x) < 3 or np.ptp(x, 0).max() < SAME:  # by which t-SNE would be led astray, down to a segmentation fault
        return np.random.default_rng(seed).normal(size=(len(x), 2))
    init = "pca" if min(x.shape) >= 2 else "random"
    with threadpool_limits(1, "blas"):
        return TSNE(perplexity=min(PERPLEXITY, (len(x) - 1) / 3), random_state=seed, init=init).fit_transform(x)
