import pytest
import torch

from sslrun.models.backbones.stem import for_imagenet
from sslrun.models.encoder import build_encoder
from tests.helpers import BACKBONES, encoder_of


@pytest.mark.parametrize(("name", "image_size", "side"), [
    ("resnet18", 32, 4), ("resnet18", 64, 8), ("resnet18", 128, 4),
    ("mobilenetv2", 32, 4), ("mobilenetv2", 64, 4), ("mobilenetv2", 128, 4), ("smallcnn", 32, 2),
])  # fmt: skip
def test_small_images_keep_a_large_feature_map(name: str, image_size: int, side: int) -> None:
    net = encoder_of(name, image_size)
    assert net.maps(torch.rand(1, 3, image_size, image_size))[-1].shape[-2:] == (side, side)


def test_resnet18_with_a_stem_for_imagenet_weights_keeps_the_borders_of_small_images() -> None:
    net = build_encoder(for_imagenet(BACKBONES["resnet18"], 32), 32, [0.5] * 3, [0.25] * 3)
    assert [m.shape[-1] for m in net.maps(torch.rand(1, 3, 32, 32))] == [32, 16, 8, 4]
