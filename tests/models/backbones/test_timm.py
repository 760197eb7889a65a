"""Networks of timm against timm itself."""

import sys
from typing import Any

import pytest
import timm as library
import torch

from sslrun.base.errors import UserError
from sslrun.models.backbones.timm import Timm, timm
from sslrun.models.encoder import Encoder, average

CONVOLUTIONAL = ("test_resnet", "test_efficientnet", "test_convnext", "mobilenetv3_small_050", "test_byobnet")


@pytest.mark.parametrize("name", CONVOLUTIONAL)
@pytest.mark.parametrize("image_size", [64, 96])
def test_the_last_map_is_what_the_network_pools(name: str, image_size: int) -> None:
    torch.manual_seed(0)
    ours = timm(image_size, name=name).eval()
    assert isinstance(ours, Timm)
    published: Any = library.create_model(name, num_classes=0, global_pool="avg").eval()
    published.load_state_dict(ours.net.state_dict())
    x = torch.rand(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = ours(x)
        assert torch.equal(maps[-1], published.forward_features(x))
        resolutions = [m.shape[2] for m in maps]
    assert resolutions == sorted(resolutions, reverse=True)
    assert len(set(resolutions)) >= len(resolutions) - 1  # a convolution before pooling keeps the resolution
    assert [m.shape[1] for m in maps] == ours.channels


def test_a_vision_transformer_has_four_maps_of_equal_size() -> None:
    net = timm(96, name="test_vit")
    encoder = Encoder(net, [0.5] * 3, [0.5] * 3, image_size=96)
    sizes = {tuple(m.shape) for m in encoder.eval().maps(torch.rand(2, 3, 96, 96))}
    assert sizes == {(2, 64, 6, 6)}
    assert encoder.channels == [64] * len(encoder.channels)
    assert 1 < len(encoder.channels) <= 4


def test_the_gradient_reaches_every_weight() -> None:
    torch.manual_seed(0)
    net = timm(64, name="test_efficientnet")
    average(net(torch.rand(4, 3, 64, 64))[-1]).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in net.parameters())


def test_building_a_network_keeps_its_batch_norm_statistics() -> None:
    net = timm(64, name="test_resnet")
    assert net.training
    assert all(bool((v == 0).all()) for k, v in net.state_dict().items() if k.endswith("running_mean"))


def test_an_unknown_name_and_an_image_that_is_too_small_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"backbone\.name=resnet5: timm has no such network; did you mean resnet"):
        timm(64, name="resnet5")
    with pytest.raises(UserError, match=r"backbone\.name=test_convnext: no feature maps for images of 8 px .*set data"):
        timm(8, name="test_convnext")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"backbone=timm needs the package timm: pip install 'sslrun\[timm\]'"):
        timm(64, name="resnet50")
