"""Backbones and encoders: feature maps, pooling, invalid backbones."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from sslrun.base.errors import UserError
from sslrun.config.build import build
from sslrun.config.compose import compose_nodes
from sslrun.models.backbones.smallcnn import smallcnn
from sslrun.models.encoder import Encoder, build_encoder, pooled
from tests.helpers import BACKBONES, encoder_of


@pytest.mark.parametrize(("name", "d"), [("smallcnn", 512), ("resnet18", 512), ("mobilenetv2", 1280)])
@pytest.mark.parametrize("image_size", [12, 16, 32, 64, 96])
def test_features_have_the_documented_dimension(name: str, d: int, image_size: int) -> None:
    net = encoder_of(name, image_size)
    assert net.feature_dim == d
    assert net(torch.rand(2, 3, image_size, image_size)).shape == (2, d)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("image_size", [16, 32, 96])
def test_grid_pooling_uses_the_maps_of_the_last_two_stages(name: str, image_size: int) -> None:
    """Compare with the maps of torchvision's own feature extractor."""
    torch.manual_seed(0)
    grid = build_encoder(BACKBONES[name], image_size, [0.5] * 3, [0.25] * 3, "grid").eval()
    average = encoder_of(name, image_size)
    average.load_state_dict(grid.state_dict())  # same keys, so a checkpoint works with both
    nodes = {"smallcnn": ["11", "15"], "resnet18": ["layer3", "layer4"], "mobilenetv2": ["features.13", "features.18"]}[
        name
    ]
    extractor = create_feature_extractor(average.backbone, nodes)
    images = torch.rand(2, 3, image_size, image_size)
    fields = []
    for m in extractor((images - 0.5) / 0.25).values():
        a, b = m.shape[2] // 2, (m.shape[2] + 1) // 2  # cells of an odd-sized map overlap
        corners = [m[:, :, :b, :b], m[:, :, :b, a:], m[:, :, a:, :b], m[:, :, a:, a:]]
        one = m.shape[2] == 1
        fields.append(m.flatten(1) if one else torch.stack([c.mean((2, 3)) for c in corners], 2).flatten(1))
    assert grid.feature_dim == sum(f.shape[1] for f in fields)
    assert torch.allclose(grid(images), torch.cat(fields, 1), atol=1e-5)


def test_grid_pooling_of_a_single_1_px_map_is_the_map() -> None:
    class Mean(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.channels = [3]
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> list[Tensor]:
            return [self.scale * x.mean((2, 3), keepdim=True)]

    assert Encoder(Mean(), [0.0] * 3, [1.0] * 3, "grid")(torch.ones(2, 3, 8, 8)).tolist() == [[1.0] * 3] * 2


@pytest.mark.parametrize("name", BACKBONES)
def test_the_maps_match_the_channels(name: str) -> None:
    net = encoder_of(name, 64)
    maps = net.maps(torch.rand(2, 3, 64, 64))
    assert [m.shape[1] for m in maps] == net.channels
    assert [m.shape[2] for m in maps] == sorted((m.shape[2] for m in maps), reverse=True)


@pytest.mark.parametrize("name", BACKBONES)
def test_building_an_encoder_draws_only_its_weights_and_keeps_batch_norm_statistics(name: str) -> None:
    torch.manual_seed(0)
    backbone = build(BACKBONES[name], 32)
    drawn, state = torch.get_rng_state(), {k: v.clone() for k, v in backbone.state_dict().items()}
    Encoder(backbone, [0.5] * 3, [0.25] * 3, "grid")
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(v, state[k]) for k, v in backbone.state_dict().items())
    assert all(m.training for m in backbone.modules())


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2"])
def test_the_initial_weights_equal_those_of_torchvision(name: str) -> None:
    from torchvision import models

    ours = encoder_of(name, 128).backbone.state_dict()
    torch.manual_seed(0)
    theirs = {"resnet18": models.resnet18, "mobilenetv2": models.mobilenet_v2}[name]().state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in ours.items())
    assert {k.split(".")[0] for k in theirs.keys() - ours.keys()} <= {"fc", "classifier"}


def without_channels(image_size: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def with_one_map_that_is_no_list(image_size: int) -> nn.Module:
    net: Any = nn.Sequential(nn.Conv2d(3, 4, 3))
    net.channels = [4]
    return net


def with_other_channels(image_size: int) -> nn.Module:
    net: Any = smallcnn(image_size, widths=[4, 8])
    net.channels = [4]
    return net


def no_module(image_size: int) -> int:
    return image_size


@pytest.mark.parametrize(("name", "words"), [
    ("without_channels", "have `channels`, a list"),
    ("with_one_map_that_is_no_list", "return a list of maps, .* it returned a tensor"),
    ("with_other_channels", r".* with C=\[4\] as its `channels` say; .* returned \[\[2, 4, 16, 16\], \[2, 8, 8, 8\]\]"),
    ("no_module", "be a torch.nn.Module, found int"),
])  # fmt: skip
def test_an_invalid_backbone_is_refused_in_one_line(name: str, words: str) -> None:
    with pytest.raises(UserError, match=rf"test_encoder\.{name} \(.*\.py\): a backbone must {words}") as refused:
        build_encoder({"_target_": f"tests.models.test_encoder.{name}"}, 32, [0.5] * 3, [0.25] * 3)
    assert "\n" not in str(refused.value)


def test_the_encoder_normalizes(pieces: Tensor) -> None:
    net = encoder_of("smallcnn", 32)
    normalized = ((pieces - 0.5) / 0.25).contiguous()  # the memory format of the weights
    assert torch.equal(net(pieces), net.backbone(normalized)[-1].mean((2, 3)))
    assert {"mean", "std"} <= net.state_dict().keys()


def test_the_backbones_tested_here_are_those_of_conf() -> None:
    from sslrun.config.compose import compose_config

    for name, node in BACKBONES.items():
        assert dict(compose_config("pretrain", [f"backbone={name}"], None).backbone) == node
    assert compose_nodes("pretrain", "backbone") == [BACKBONES["smallcnn"]]


def test_each_channel_is_normalized_by_its_own_mean_and_deviation() -> None:
    seen: list[Tensor] = []
    net = Encoder(smallcnn(16, widths=[4]), [0.1, 0.2, 0.3], [0.5, 0.25, 0.125], image_size=16)
    net.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.rand(2, 3, 16, 16)
    net(images)
    for c, (mean, std) in enumerate([(0.1, 0.5), (0.2, 0.25), (0.3, 0.125)]):
        assert torch.allclose(seen[0][:, c], (images[:, c] - mean) / std, atol=1e-6)


def test_the_feature_dimension_follows_the_image_size_and_the_pooling() -> None:
    node = {"_target_": "sslrun.models.backbones.smallcnn.smallcnn", "widths": [4, 5, 6]}
    for size, grid in ((32, 4 * 11), (16, 4 * 11), (8, 4 * 5 + 6)):  # at 8 px the last map has 1 px
        net = build_encoder(node, size, [0.5] * 3, [0.5] * 3, "grid")
        assert net.feature_dim == net(torch.rand(2, 3, size, size)).shape[1] == grid
        net.pooling = "average"
        assert net.feature_dim == net(torch.rand(2, 3, size, size)).shape[1] == 6
        assert build_encoder(node, size, [0.5] * 3, [0.5] * 3).pooling == "average"


def test_modules_of_a_backbone_keep_their_mode() -> None:
    backbone = smallcnn(16, widths=[4, 8])
    first = next(backbone.children())
    first.eval()
    Encoder(backbone, [0.5] * 3, [0.5] * 3)
    assert backbone.training
    assert not first.training


class Given(nn.Module):
    """A backbone that returns maps of the given shapes."""

    def __init__(self, *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.shapes, self.channels = shapes, [s[1] for s in shapes]

    def forward(self, x: Tensor) -> list[Tensor]:
        return [torch.zeros(s) for s in self.shapes]


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ([(1, 4, 8, 8)], "return a list of maps"),
        ([(2, 4, 8, 8), (1, 4, 4, 4)], "return a list of maps"),
        ([(2, 4, 8)], "return a list of maps"),
        ([(2, 4, 4, 4), (2, 4, 8, 8)], "maps fine to coarse"),
        ([(2, 4, 8, 4), (2, 4, 4, 8)], "maps fine to coarse"),
        ([(2, 4, 4, 8), (2, 4, 8, 4)], "maps fine to coarse"),
    ],
)
def test_maps_of_another_batch_or_order_are_refused(shapes: list[tuple[int, ...]], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Encoder(Given(*shapes), [0.5] * 3, [0.5] * 3)
    Encoder(Given((2, 4, 8, 8), (2, 4, 8, 8), (2, 6, 1, 1)), [0.5] * 3, [0.5] * 3)  # equal sides are fine to coarse


def eight_bits(x: Tensor) -> bool:
    return torch.equal(x, x.bfloat16().float())


@pytest.mark.parametrize("pooling", ["average", "grid"])
def test_features_are_float32_when_the_maps_are_bf16(pooling: Any, pieces: Tensor) -> None:
    encoder = encoder_of("smallcnn", 32)
    encoder.pooling = pooling
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        maps, features = encoder.maps(pieces), encoder(pieces)
    assert {m.dtype for m in maps} == {torch.bfloat16}
    assert features.dtype == torch.float32
    assert not eight_bits(features)
    torch.testing.assert_close(features, pooled([m.float() for m in maps], pooling), rtol=1e-6, atol=1e-7)
