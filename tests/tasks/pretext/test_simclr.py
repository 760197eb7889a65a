"""The two views of SimCLR, its projection head and what its loss is of."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslrun.augment import Augment, Rng
from sslrun.models.backbones.smallcnn import smallcnn
from sslrun.models.encoder import Encoder
from sslrun.tasks.pretext.simclr import SimCLR, cosine, dcl, ntxent

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
