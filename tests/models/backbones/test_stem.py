import pytest
import torch

from tests.helpers import encoder_of


@pytest.mark.parametrize(("name", "image_size", "side"), [
    ("resnet18", 32, 4), ("resnet18", 64, 8), ("resnet18", 128, 4),
    ("mobilenetv2", 32, 4), ("mobilenetv2", 64, 4), ("mobilenetv2", 128, 4), ("smallcnn", 32, 2),
])  # fmt: skip
def test_small_images_keep_a_large_feature_map(name: str, image_size: int, side: int) -> None:
    net = encoder_of(name, image_size)
    assert net.maps(torch.rand(1, 3, image_size, image_size))[-1].shape[-2:] == (side, side)
