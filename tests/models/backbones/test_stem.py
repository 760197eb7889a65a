from typing import Any

import pytest
import torch

from sslrun.models.backbones.mobilenetv2 import mobilenetv2
from sslrun.models.backbones.resnet18 import resnet18
from sslrun.models.backbones.stem import Stem, for_imagenet, is_small
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


@pytest.mark.parametrize(
    ("stem", "size", "small"),
    [
        ("auto", 64, True),
        ("auto", 65, False),
        ("small", 200, True),
        ("imagenet_small", 200, True),
        ("imagenet", 32, False),
    ],
)
def test_the_stem_of_imagenet_weights_keeps_the_resolution_where_the_other_does(
    stem: str, size: int, small: bool
) -> None:
    node = {"_target_": "x", "stem": stem, "width": 3}
    assert is_small(stem, size) == small
    assert for_imagenet(node, size) == ({**node, "stem": "imagenet_small"} if small else node)
    assert for_imagenet({"_target_": "x"}, 32) == {"_target_": "x"}


@pytest.mark.parametrize(("stem", "kernel", "sides"), [
    ("small", 3, [40, 20, 10, 5]), ("imagenet_small", 7, [40, 20, 10, 5]), ("imagenet", 7, [10, 5, 3, 2]),
])  # fmt: skip
def test_resnet18_with_each_stem(stem: Stem, kernel: int, sides: list[int]) -> None:
    net: Any = resnet18(40, stem=stem)
    assert net.conv1.kernel_size == (kernel, kernel)
    assert [m.shape[-1] for m in net.eval()(torch.rand(1, 3, 40, 40))] == sides


@pytest.mark.parametrize(("size", "sides"), [(32, [32, 16, 8, 4]), (33, [17, 9, 5, 3]), (65, [17, 9, 5, 3])])
def test_mobilenetv2_halves_the_size_once_more_above_32_px_and_twice_above_64(size: int, sides: list[int]) -> None:
    assert [m.shape[-1] for m in mobilenetv2(size, stem="auto").eval()(torch.rand(1, 3, size, size))] == sides
