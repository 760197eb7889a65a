import pytest
import torch
from torch import Tensor

from sslrun.device import Device
from sslrun.models.classifier import Classifier
from sslrun.models.encoder import Pooling, build_encoder
from sslrun.models.features import features, map_features, pooled_features, probabilities, probabilities_and_maps
from tests.helpers import CPU, encoder_of, small_encoder


def test_features_do_not_depend_on_the_batch(pieces: Tensor) -> None:
    device = Device(
        name="cpu", precision="fp32", memory_format="channels_last", compile=None, deterministic=False, threads=None
    )
    images = (pieces * 255).round().to(torch.uint8)
    net = encoder_of("smallcnn", 32)
    assert torch.allclose(features(net, images, device, 7), features(net, images, device, 60), atol=1e-5)


def test_map_features_are_the_means_of_the_maps() -> None:
    torch.manual_seed(0)
    encoder = build_encoder(
        {"_target_": "sslrun.models.backbones.resnet18.resnet18", "stem": "auto"}, 32, [0.5] * 3, [0.5] * 3, "grid"
    )
    device = Device(
        name="cpu", precision="fp32", memory_format="contiguous", compile=None, deterministic=False, threads=None
    )
    images = (torch.rand(5, 3, 32, 32) * 255).to(torch.uint8)
    result = map_features(encoder, images, device, batch_size=2)
    assert [f.shape for f in result] == [(5, 64), (5, 128), (5, 256), (5, 512)]
    x = (images / 255 - 0.5) / 0.5
    net = encoder.backbone.eval()
    with torch.no_grad():
        one = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(x)))))  # type: ignore[operator]
    assert torch.allclose(result[0], one.mean((2, 3)), atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(result[-1], net(x)[-1].mean((2, 3)), atol=1e-5)
    assert not any(m._forward_hooks for n, m in net.named_modules() if n == "layer1")  # no hook is left


def photos(n: int) -> Tensor:
    return (torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)


@torch.no_grad()
def test_features_are_those_of_the_encoder_in_evaluation_mode_with_each_pooling() -> None:
    encoder, images = small_encoder((4, 8)), photos(7)
    encoder.train()
    poolings: list[Pooling] = ["grid", "average"]
    together = pooled_features(encoder, images, CPU, poolings, 3)
    assert not encoder.training
    assert list(together) == poolings
    assert encoder.pooling == "average"
    for pooling in poolings:
        encoder.pooling = pooling
        assert torch.allclose(features(encoder, images, CPU, 3), together[pooling])
        assert torch.allclose(encoder(images / 255), together[pooling], atol=1e-5)
        assert together[pooling].shape == (7, encoder.feature_dim)
    encoder.pooling = "average"
    assert list(pooled_features(encoder, images, CPU, ["grid"])) == ["grid"]


def test_in_half_precision_features_and_probabilities_are_still_of_32_bits() -> None:
    device = Device(
        name="cpu", precision="bf16", memory_format="contiguous", compile=None, deterministic=False, threads=None
    )
    encoder, images = small_encoder((4, 8)), photos(3)
    assert features(encoder, images, device).dtype == torch.float32
    assert pooled_features(encoder, images, device, ["grid"])["grid"].dtype == torch.float32
    assert [m.dtype for m in map_features(encoder, images, device)] == [torch.float32] * 2
    assert probabilities(Classifier(encoder, 3), images, device).dtype == torch.float32
    assert not torch.equal(features(encoder, images, device), features(encoder, images, CPU))


@torch.no_grad()
def test_probabilities_are_those_of_the_classifier_in_evaluation_mode() -> None:
    classifier, images = Classifier(small_encoder((4, 8)), 3).train(), photos(7)
    result = probabilities(classifier, images, CPU, 2)
    assert not classifier.training
    assert torch.allclose(result, classifier.head(classifier.encoder(images / 255)).softmax(1), atol=1e-5)


@pytest.mark.parametrize(("size", "most"), [(32, 512), (64, 512), (224, 41), (600, 16)])
def test_large_images_are_computed_in_small_batches(size: int, most: int) -> None:
    """A batch of 512 images at 224 px would need gigabytes for the maps of the first stages."""
    encoder, seen = small_encoder(), []
    encoder.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    device = Device(
        name="cpu", precision="fp32", memory_format="contiguous", compile=None, deterministic=False, threads=None
    )
    n = most + 1
    found = features(encoder, torch.zeros(1, 3, size, size, dtype=torch.uint8).expand(n, -1, -1, -1), device)
    assert (len(found), seen) == (n, [most, 1])


def test_probabilities_and_maps_are_those_of_two_passes(pieces: Tensor) -> None:
    device = Device(
        name="cpu", precision="fp32", memory_format="contiguous", compile=None, deterministic=False, threads=None
    )
    images = (pieces * 255).round().to(torch.uint8)
    classifier = Classifier(encoder_of("smallcnn", 32), 4)
    found, maps = probabilities_and_maps(classifier, images, device)
    assert torch.allclose(found, probabilities(classifier, images, device), atol=1e-6)
    for one, other in zip(maps, map_features(classifier.encoder, images, device), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
