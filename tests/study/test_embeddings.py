import numpy as np
import pytest
import torch

from sslrun.data.dataset import Dataset
from sslrun.data.images import Images
from sslrun.study import embeddings
from tests.helpers import BACKBONES, source_node


def test_points_and_labels_belong_to_the_same_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are drawn at random; here the features are their mean brightness, which is their label."""
    labels = torch.arange(30) % 3
    pixels = (80 * labels).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 8, 8, 3).contiguous()
    data = Dataset(Images([pixels], np.zeros((30, 16), np.uint8)), labels, list("abc"), [str(i) for i in range(30)])
    monkeypatch.setattr(embeddings, "features", lambda encoder, images, device: images[:].float().mean((1, 2, 3)) / 80)
    monkeypatch.setattr(embeddings, "tsne", lambda x, seed: x)
    device = {"name": "cpu", "precision": "fp32", "memory_format": "contiguous", "compile": None, "threads": None}
    node = {**source_node("digits", None), "image_size": 16}
    hardware = {"_target_": "sslrun.device.Device", **device}
    maps, names = embeddings.embedding_maps({}, BACKBONES["smallcnn"], node, hardware, data, data)
    assert maps["random initialization"].round().tolist() == names.tolist()
    assert names.tolist() != labels.tolist()
