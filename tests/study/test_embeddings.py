from pathlib import Path
from types import SimpleNamespace
from typing import Any

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
    device = {
        "name": "cpu", "precision": "fp32", "memory_format": "contiguous", "compile": None, "deterministic": False,
        "threads": None,
    }  # fmt: skip
    node = {**source_node("digits", None), "image_size": 16}
    hardware = {"_target_": "sslrun.device.Device", **device}
    maps, names = embeddings.embedding_maps({}, BACKBONES["smallcnn"], node, hardware, data, data)
    assert maps["random initialization"].round().tolist() == names.tolist()
    assert names.tolist() != labels.tolist()


def test_each_network_has_a_map_of_the_same_images_drawn_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    """Normalized by the training images, not by those on the map."""

    def data(n: int, gray: int) -> Dataset:
        pixels = torch.full((n, 8, 8, 3), gray, dtype=torch.uint8)
        return Dataset(Images([pixels], np.zeros((n, 16), np.uint8)), torch.arange(n), ["a"], [""] * n)

    def resolved(init: str, *_: Any) -> Any:
        return SimpleNamespace(encoder=lambda data: SimpleNamespace(name=init, mean=torch.tensor(len(data))))

    def features(encoder: Any, images: Images, device: Any) -> torch.Tensor:
        used.append((getattr(encoder, "name", ""), encoder.mean.flatten()[0].item(), len(images)))
        return torch.zeros(len(images), 2)

    used: list[tuple[str, float, int]] = []
    monkeypatch.setattr(embeddings, "resolve", resolved)
    monkeypatch.setattr(embeddings, "features", features)
    monkeypatch.setattr(embeddings, "tsne", lambda x, seed: x)
    hardware = {"_target_": "tests.study.test_embeddings.Hardware"}
    node = {**source_node("digits", None), "mean": None, "std": None}
    runs = {"simclr": Path("outputs/a"), "rotation": Path("outputs/b")}
    maps, labels = embeddings.embedding_maps(runs, BACKBONES["smallcnn"], node, hardware, data(20, 51), data(1100, 255))
    assert list(maps) == ["random initialization", "simclr", "rotation"]
    assert used == [("", pytest.approx(0.2), 1000), ("outputs/a", 20, 1000), ("outputs/b", 20, 1000)]
    assert all(x.shape == (1000, 2) for x in maps.values())
    assert len({*labels.tolist()}) == 1000
    assert labels.max() > 1050


class Hardware:
    def claim(self) -> None: ...

    def put(self, encoder: Any) -> None: ...
