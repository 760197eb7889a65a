from pathlib import Path

import pytest
import torch

from sslrun.models.backbones.pixels import pixels
from sslrun.models.encoder import Encoder
from tests.helpers import QUICK, Cli, runs, summary

DIGITS = ("dataset=digits", "dataset.max_images=300", "backbone=pixels", *QUICK)


@pytest.mark.parametrize("size", [8, 32, 24])
def test_features_are_the_means_of_cells(size: int) -> None:
    x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    side = size // 8
    naive = [
        x[:, :, i * side : (i + 1) * side, j * side : (j + 1) * side].mean((2, 3)) for i in range(8) for j in range(8)
    ]
    (found,) = pixels(size)(x)
    assert found.shape == (2, 192, 1, 1)
    assert torch.allclose(found.reshape(2, 3, 64), torch.stack(naive, 2), atol=1e-6)


@pytest.mark.parametrize("size", [5, 28, 30])
def test_pixels_that_cells_divide_count_by_their_overlap(size: int) -> None:
    """As in an image of eight times the size, in which every pixel is repeated."""
    x = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    large = x.repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert torch.allclose(pixels(size)(x)[0], pixels(8 * size)(large)[0], atol=1e-6)


def test_there_are_no_weights_and_both_poolings_are_the_same() -> None:
    encoder = Encoder(pixels(28), [0.5] * 3, [0.5] * 3, "grid", 28)
    assert not list(encoder.parameters())
    assert set(encoder.state_dict()) == {"mean", "std"}
    x = torch.rand(4, 3, 28, 28)
    grid = encoder(x)
    encoder.pooling = "average"
    assert torch.equal(encoder(x), grid)
    assert encoder.feature_dim == 192


@pytest.mark.slow
def test_a_classifier_on_pixels_is_evaluated_exported_and_predicts(cli: Cli, photo_files: list[str]) -> None:
    for mode in ("knn", "probe"):
        made = cli("finetune", "init=scratch", f"mode={mode}", "labels=30", *DIGITS)
        assert made.code == 0, made.err
    assert summary(runs("finetune")[-1])["backbone"] == "pixels"
    tested = cli("evaluate", *QUICK)
    assert tested.code == 0, tested.err
    assert summary(runs("evaluate")[-1])["test/accuracy"] > 0.6
    predicted = cli("predict", photo_files[0], *QUICK)
    assert predicted.code == 0, predicted.err
    pytest.importorskip("onnx")
    exported = cli("export")
    assert exported.code == 0, exported.err
    assert list(Path("outputs/export").glob("*/classifier.onnx"))


def test_pixels_cannot_be_pretrained(cli: Cli) -> None:
    answer = cli("pretrain", *DIGITS)
    assert answer.code == 1
    assert answer.err.splitlines()[-1] == (
        "sslrun: backbone=pixels has no weights to pretrain; use it with sslrun finetune init=scratch mode=probe"
    )
