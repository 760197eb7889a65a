from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from sslrun.base.errors import UserError
from sslrun.config.build import build
from sslrun.config.compose import compose_nodes
from sslrun.device import Device
from sslrun.evaluation.features import features
from sslrun.models.backbones.smallcnn import smallcnn
from sslrun.models.backbones.stem import for_imagenet
from sslrun.models.encoder import Encoder, average, build_encoder
from sslrun.models.weights import load_imagenet, load_state

NODES: dict[str, dict[str, Any]] = {
    "smallcnn": {"_target_": "sslrun.models.backbones.smallcnn.smallcnn", "widths": [64, 128, 256, 512]},
    "resnet18": {"_target_": "sslrun.models.backbones.resnet18.resnet18", "stem": "auto"},
    "mobilenetv2": {"_target_": "sslrun.models.backbones.mobilenetv2.mobilenetv2", "stem": "auto"},
}


def encoder(name: str, image_size: int) -> Encoder:
    torch.manual_seed(0)
    return build_encoder(NODES[name], image_size, [0.5] * 3, [0.25] * 3).eval()


@pytest.mark.parametrize(("name", "d"), [("smallcnn", 512), ("resnet18", 512), ("mobilenetv2", 1280)])
@pytest.mark.parametrize("image_size", [12, 16, 32, 64, 96])
def test_features_have_the_promised_size(name: str, d: int, image_size: int) -> None:
    net = encoder(name, image_size)
    assert net.feature_dim == d
    assert net(torch.rand(2, 3, image_size, image_size)).shape == (2, d)


@pytest.mark.parametrize(("name", "image_size", "side"), [
    ("resnet18", 32, 4), ("resnet18", 64, 8), ("resnet18", 128, 4),
    ("mobilenetv2", 32, 4), ("mobilenetv2", 64, 4), ("mobilenetv2", 128, 4), ("smallcnn", 32, 2),
])  # fmt: skip
def test_small_pictures_keep_a_map_of_features(name: str, image_size: int, side: int) -> None:
    net = encoder(name, image_size)
    assert net.maps(torch.rand(1, 3, image_size, image_size))[-1].shape[-2:] == (side, side)


@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize("image_size", [16, 32, 96])
def test_the_grid_is_of_the_last_two_stages_maps(name: str, image_size: int) -> None:
    """Against the maps that torchvision's own extractor of features finds."""
    torch.manual_seed(0)
    grid = build_encoder(NODES[name], image_size, [0.5] * 3, [0.25] * 3, "grid").eval()
    average = encoder(name, image_size)
    average.load_state_dict(grid.state_dict())  # the same keys, so a checkpoint serves both
    nodes = {"smallcnn": ["11", "15"], "resnet18": ["layer3", "layer4"], "mobilenetv2": ["features.13", "features.18"]}[
        name
    ]
    extractor = create_feature_extractor(average.backbone, nodes)
    images = torch.rand(2, 3, image_size, image_size)
    fields = []
    for m in extractor((images - 0.5) / 0.25).values():
        a, b = m.shape[2] // 2, (m.shape[2] + 1) // 2  # fields of an odd map overlap
        corners = [m[:, :, :b, :b], m[:, :, :b, a:], m[:, :, a:, :b], m[:, :, a:, a:]]
        one = m.shape[2] == 1
        fields.append(m.flatten(1) if one else torch.stack([c.mean((2, 3)) for c in corners], 2).flatten(1))
    assert grid.feature_dim == sum(f.shape[1] for f in fields)
    assert torch.allclose(grid(images), torch.cat(fields, 1), atol=1e-5)


def test_the_grid_of_one_map_of_one_pixel_is_what_the_backbone_returns() -> None:
    class Mean(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.channels = [3]
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> list[Tensor]:
            return [self.scale * x.mean((2, 3), keepdim=True)]

    assert Encoder(Mean(), [0.0] * 3, [1.0] * 3, "grid")(torch.ones(2, 3, 8, 8)).tolist() == [[1.0] * 3] * 2


@pytest.mark.parametrize("name", NODES)
def test_the_maps_are_what_the_channels_say(name: str) -> None:
    net = encoder(name, 64)
    maps = net.maps(torch.rand(2, 3, 64, 64))
    assert [m.shape[1] for m in maps] == net.channels
    assert [m.shape[2] for m in maps] == sorted((m.shape[2] for m in maps), reverse=True)


@pytest.mark.parametrize("name", NODES)
def test_building_an_encoder_draws_weights_alone_and_leaves_batch_norm_as_it_is(name: str) -> None:
    torch.manual_seed(0)
    backbone = build(NODES[name], 32)
    drawn, state = torch.get_rng_state(), {k: v.clone() for k, v in backbone.state_dict().items()}
    Encoder(backbone, [0.5] * 3, [0.25] * 3, "grid")
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(v, state[k]) for k, v in backbone.state_dict().items())
    assert all(m.training for m in backbone.modules())


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2"])
def test_the_weights_are_drawn_as_torchvision_draws_them(name: str) -> None:
    from torchvision import models

    ours = encoder(name, 128).backbone.state_dict()
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
    ("with_one_map_that_is_no_list", "return a list of maps, .* it returned Tensor"),
    ("with_other_channels", r".* with C=\[4\] as its `channels` say; it returned \[\[1, 4, 16, 16\], \[1, 8, 8, 8\]\]"),
    ("no_module", "be a torch.nn.Module, not int"),
])  # fmt: skip
def test_what_is_no_backbone_is_refused_in_one_line(name: str, words: str) -> None:
    with pytest.raises(UserError, match=rf"tests\.test_backbones\.{name}: a backbone must {words}") as refused:
        build_encoder({"_target_": f"tests.test_backbones.{name}"}, 32, [0.5] * 3, [0.25] * 3)
    assert "\n" not in str(refused.value)


def test_weights_of_mobilenetv2_from_0_1_0_are_read(tmp_path: Path) -> None:
    net = encoder("mobilenetv2", 32)
    for module, prefix in ((net, "backbone."), (net.backbone, "")):
        state = {k: torch.rand_like(v.float()) for k, v in module.state_dict().items()}
        old = {k.replace(f"{prefix}features.", f"{prefix}0."): v for k, v in state.items()}
        assert old.keys() != state.keys()
        load_state(module, old, tmp_path)
        assert all(torch.equal(v, state[k].to(v.dtype)) for k, v in module.state_dict().items())


def test_weights_of_nested_blocks_that_look_like_those_of_0_1_0_keep_their_names(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3)))
    load_state(net, {k: v + 1 for k, v in net.state_dict().items()}, tmp_path)


def test_the_encoder_normalizes(pieces: Tensor) -> None:
    net = encoder("smallcnn", 32)
    normalized = ((pieces - 0.5) / 0.25).contiguous()  # the format of the weights
    assert torch.equal(net(pieces), net.backbone(normalized)[-1].mean((2, 3)))
    assert {"mean", "std"} <= net.state_dict().keys()


def test_features_do_not_depend_on_the_batch(pieces: Tensor) -> None:
    device = Device(name="cpu", precision="fp32", memory_format="channels_last", compile=None, threads=None)
    images = (pieces * 255).round().to(torch.uint8)
    net = encoder("smallcnn", 32)
    assert torch.allclose(features(net, images, device, 7), features(net, images, device, 60), atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2"])
@pytest.mark.parametrize("image_size", [32, 128])
def test_imagenet_weights_of_torchvision_fit_every_key(
    name: str, image_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import models

    weights = {"resnet18": models.ResNet18_Weights, "mobilenetv2": models.MobileNet_V2_Weights}[name]
    original = {"resnet18": models.resnet18, "mobilenetv2": models.mobilenet_v2}[name]()  # stands for the download
    monkeypatch.setattr(weights, "get_state_dict", lambda self, **_: original.state_dict())
    net = build_encoder(for_imagenet(NODES[name], image_size), image_size, [0.5] * 3, [0.25] * 3)
    load_imagenet(net)
    assert net.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    if image_size == 128:  # the same network as torchvision's: the same features
        original.eval()
        x = torch.rand(2, 3, 128, 128)
        normal = (x - net.mean) / net.std
        whole = original(normal)
        head = original.fc if name == "resnet18" else original.classifier
        assert torch.allclose(head(net.eval()(x)), whole, atol=1e-4)


def test_imagenet_without_network_says_where_to_put_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"download\.pytorch\.org.*resnet18.*put it there"):
        load_imagenet(encoder("resnet18", 32))
    with pytest.raises(UserError, match="no ImageNet weights"):
        load_imagenet(encoder("smallcnn", 32))


def test_the_conf_of_a_backbone_is_what_is_tested_here() -> None:
    from sslrun.config.compose import compose_config

    for name, node in NODES.items():
        assert dict(compose_config("pretrain", [f"backbone={name}"], None).backbone) == node
    assert compose_nodes("pretrain", "backbone") == [NODES["smallcnn"]]


def test_smallcnn_is_the_textbook_network(pieces: Tensor) -> None:
    """Pooling before the ReLU is only a matter of speed."""
    torch.manual_seed(0)
    ours = smallcnn(32, widths=[8, 16, 24])
    layers: list[nn.Module] = []
    for before, after in ((3, 8), (8, 16), (16, 24)):
        layers += [
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    textbook = nn.Sequential(*layers)
    textbook.load_state_dict(ours.state_dict())
    out = []
    for net in (ours, textbook):
        maps = net(pieces)
        features = average(maps[-1] if isinstance(maps, list) else maps)
        features.square().sum().backward()
        out.append([features, *(p.grad for p in net.parameters()), *net.buffers()])
    for a, b in zip(*out, strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)
