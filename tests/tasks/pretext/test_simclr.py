"""Contrastive losses against naive loops and another library."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import NTXentLoss
from torch import Tensor, nn

from sslrun.augment import Augment, Rng
from sslrun.models.backbones.smallcnn import smallcnn
from sslrun.models.encoder import Encoder
from sslrun.tasks.pretext.simclr import SimCLR, cosine, dcl, ntxent


def projections(n: int = 6, d: int = 5) -> Tensor:
    return torch.randn(2 * n, d, generator=torch.Generator().manual_seed(0))


def naive(z: Tensor, temperature: float, decoupled: bool) -> float:
    z = F.normalize(z, dim=1)
    n = len(z) // 2
    total = 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        others = [k for k in range(2 * n) if k != i and not (decoupled and k == j)]
        below = sum(math.exp(float(z[i] @ z[k]) / temperature) for k in others)
        total += -float(z[i] @ z[j]) / temperature + math.log(below)
    return total / (2 * n)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_case_58_losses_against_naive_loops(temperature: float) -> None:
    z = projections()
    assert float(ntxent(cosine(z), temperature)) == pytest.approx(naive(z, temperature, False), rel=1e-5)
    assert float(dcl(cosine(z), temperature)) == pytest.approx(naive(z, temperature, True), rel=1e-5)


def test_case_58_ntxent_against_pytorch_metric_learning() -> None:
    z = projections(16, 8)
    theirs = NTXentLoss(temperature=0.2)(z, torch.arange(16).repeat(2))
    assert float(ntxent(cosine(z), 0.2)) == pytest.approx(float(theirs), rel=1e-5)


@pytest.mark.parametrize("loss", [ntxent, dcl])
def test_losses_do_not_depend_on_the_order_of_views_or_images(loss: Any) -> None:
    z = projections()
    a, b = z.chunk(2)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(3))
    expected = float(loss(cosine(z), 0.2))
    assert float(loss(cosine(torch.cat([b, a])), 0.2)) == pytest.approx(expected, rel=1e-5)
    assert float(loss(cosine(torch.cat([a[order], b[order]])), 0.2)) == pytest.approx(expected, rel=1e-5)
    assert float(loss(cosine(3 * z), 0.2)) == pytest.approx(expected, rel=1e-5)


def test_closer_positive_pairs_have_a_lower_loss() -> None:
    a = projections()[:6]
    far = torch.cat([a, projections()[6:]])
    near = torch.cat([a, a + 0.1 * projections()[6:]])
    for loss in (ntxent, dcl):
        assert loss(cosine(near), 0.2) < loss(cosine(far), 0.2)


AUGMENT: dict[str, Any] = {
    **{"crop_scale": [0.2, 1.0], "crop_ratio": [0.75, 1.333], "degrees": 0.0, "horizontal_flip": True},
    **{"color_jitter": [0.4, 0.4, 0.4, 0.1], "jitter_probability": 0.8, "grayscale": 0.2, "blur": 0.0},
    "probability": 1.0,
}


def simclr(**changes: Any) -> SimCLR:
    torch.manual_seed(0)
    encoder = Encoder(smallcnn(32, widths=[4, 8]), [0.5] * 3, [0.25] * 3)
    keys: dict[str, Any] = {"loss": "ntxent", "temperature": 0.2, "hidden_dim": 16, "output_dim": 5, "layers": 2}
    return SimCLR(encoder, 32, augment=Augment(**AUGMENT), **{**keys, **changes})


def rng() -> Rng:
    return Rng(torch.Generator().manual_seed(0))


def test_the_two_views_of_every_image_differ(pieces: Tensor) -> None:
    first, second = simclr().views(pieces, rng()).values()
    assert first.shape == second.shape == pieces.shape
    for a, b in ((first, second), (first, pieces), (second, pieces)):
        assert ((a - b).abs().amax((1, 2, 3)) > 0.01).all()


@pytest.mark.parametrize(("name", "loss"), [("ntxent", ntxent), ("dcl", dcl)])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
@torch.no_grad()
def test_the_loss_compares_the_projections_of_the_two_views(
    name: str, loss: Any, temperature: float, pieces: Tensor
) -> None:
    task = simclr(loss=name, temperature=temperature).eval()
    first, second = task.views(pieces, rng()).values()
    projections = [task.projector(task.encoder(view)) for view in (first, second)]
    expected = loss(cosine(torch.cat(projections)), temperature)
    assert float(task({"images": pieces}, rng())["loss"]) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(("layers", "widths"), [(1, [8, 5]), (2, [8, 16, 5]), (3, [8, 16, 16, 5])])
def test_the_projection_head_has_as_many_layers_as_configured(layers: int, widths: list[int]) -> None:
    head = simclr(layers=layers).projector
    linear = [m for m in head if isinstance(m, nn.Linear)]
    assert [linear[0].in_features, *[m.out_features for m in linear]] == widths
    assert sum(isinstance(m, nn.BatchNorm1d) for m in head) == sum(isinstance(m, nn.ReLU) for m in head) == layers - 1
    assert head[-1] is linear[-1]


@torch.no_grad()
def test_the_accuracy_is_the_fraction_of_views_whose_nearest_neighbor_is_their_other_view(pieces: Tensor) -> None:
    task = simclr(output_dim=16)  # in training mode, in which projections spread
    task.augment = Augment(**{**AUGMENT, "crop_scale": [0.7, 1.0], "jitter_probability": 0.3, "grayscale": 0.0})
    images = pieces[::2]
    z = F.normalize(task.projector(task.encoder(torch.cat(list(task.views(images, rng()).values())))), dim=1)
    distance = torch.cdist(z.double(), z.double()).fill_diagonal_(9)
    hits = sum(int(distance[i].argmin()) == (i + 30) % 60 for i in range(60))
    assert 5 < hits < 55
    assert float(task({"images": images}, rng())["pretext_accuracy"]) == pytest.approx(hits / 60)


def test_the_loss_and_its_temperature_are_shown() -> None:
    assert repr(simclr(temperature=0.25)).startswith("SimCLR(\n  loss NT-Xent, temperature 0.25\n")
    assert repr(simclr(loss="dcl", temperature=0.1)).startswith("SimCLR(\n  loss DCL, temperature 0.1\n")


def test_only_the_last_layer_of_the_projection_head_has_a_bias() -> None:
    assert [m.bias is not None for m in simclr(layers=3).projector if isinstance(m, nn.Linear)] == [False, False, True]
