"""Networks of torchvision against torchvision itself."""

import pytest
import torch
from torchvision import models

from sslrun.base.errors import UserError
from sslrun.models.backbones.torchvision import torchvision
from sslrun.models.encoder import average

MAPS = {  # name -> channels of the maps, and the module of the network whose input is the last one
    "shufflenet_v2_x0_5": ([24, 24, 48, 96, 1024], "fc"),
    "mobilenet_v3_small": ([16, 16, 24, 48, 576], "avgpool"),
    "mnasnet1_0": ([16, 24, 40, 96, 1280], "classifier"),
    "squeezenet1_1": ([64, 128, 256, 512], "classifier"),
    "densenet121": ([64, 256, 512, 1024, 1024], "classifier"),
    "resnet18": ([64, 64, 128, 256, 512], "avgpool"),
    "regnet_y_400mf": ([32, 48, 104, 208, 440], "avgpool"),
    "googlenet": ([64, 192, 480, 832, 1024], "avgpool"),
}


@pytest.mark.parametrize("name", MAPS)
def test_the_last_map_is_what_the_network_pools(name: str) -> None:
    torch.manual_seed(0)
    channels, after = MAPS[name]
    ours = torchvision(64, name=name).eval()
    google = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    published = models.get_model(name, weights=None, **google).eval()
    state = ours.net.state_dict()  # type: ignore[union-attr]
    missing, unexpected = published.load_state_dict(state, strict=False)
    assert not unexpected  # the names of the weights are those of torchvision
    assert all(k.split(".")[0] in ("fc", "classifier") for k in missing)
    inputs: list[torch.Tensor] = []
    published.get_submodule(after).register_forward_pre_hook(lambda module, x: inputs.append(x[0]))
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = ours(x)
        published(x)
    assert [m.shape[1] for m in maps] == channels == ours.channels
    pooled = inputs[0] if inputs[0].ndim == 2 else None
    assert torch.equal(maps[-1], inputs[0]) if pooled is None else torch.allclose(average(maps[-1]), pooled, atol=1e-6)
    sides = [m.shape[2] for m in maps]
    assert sides == sorted(sides, reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg11_bn", "alexnet", "convnext_tiny", "efficientnet_b0", "swin_t"])
def test_larger_networks_have_maps_too(name: str) -> None:
    net = torchvision(96, name=name).eval()
    maps = net(torch.rand(1, 3, 96, 96))
    assert [m.shape[1] for m in maps] == net.channels
    assert maps[-1].shape[2] in (1, 2, 3)


def test_dropout_and_batch_norm_follow_the_mode_of_the_network() -> None:
    torch.manual_seed(0)
    net = torchvision(64, name="mobilenet_v3_small")
    assert net.training
    x = torch.rand(4, 3, 64, 64)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.eval()(x)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    net.train()(x)
    assert any(not torch.equal(v, before[k]) for k, v in net.state_dict().items() if "running_mean" in k)


def test_a_network_without_maps_and_an_unknown_name_are_one_line() -> None:
    with pytest.raises(UserError, match=r"backbone\.name=vit_b_32: this network has no feature maps; choose a convo"):
        torchvision(224, name="vit_b_32")
    with pytest.raises(UserError, match=r"backbone\.name=resnet-50: torchvision has no such network; did you mean res"):
        torchvision(64, name="resnet-50")
