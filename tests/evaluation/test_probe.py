"""Logistic regression on frozen features, and the choice of C and pooling."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from sslrun.data.dataset import Dataset
from sslrun.data.images import Images
from sslrun.device import Device
from sslrun.evaluation import probe
from sslrun.evaluation.probe import C_VALUES, better_pooling, labeled_features, regression
from sslrun.models.encoder import Encoder


class Maps(nn.Module):
    """A backbone without weights that returns the images as two feature maps."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = [3, 3]

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x, x]


def of(images: Tensor, labels: Tensor) -> Dataset:
    rows = images.permute(0, 2, 3, 1).contiguous()
    return Dataset(Images([rows], np.zeros((len(rows), 16), np.uint8)), labels, ["a", "b"], [""] * len(rows))


def of_rows(data: Dataset, labels: Tensor) -> Dataset:
    return Dataset(data.images, labels, ["a", "b"], data.names)


def halves(n: int, seed: int) -> Dataset:
    """Return images whose left or right half is brighter; the mean is the same for both classes."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    images = torch.randint(0, 100, (n, 3, 8, 8), generator=rng)
    for image, label in zip(images, labels, strict=True):
        image[:, :, 4 * label : 4 * label + 4] += 20
    return of(images.to(torch.uint8), labels)


def shades(n: int, seed: int) -> Dataset:
    """Return light and dark images with a bright spot anywhere; the mean separates them better than the grid."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    images = torch.full((n, 3, 8, 8), 60) + 6 * labels.view(n, 1, 1, 1)
    for image in images:
        y, x = (4 * torch.randint(0, 2, (2,), generator=rng)).tolist()
        image[:, y : y + 4, x : x + 4] += 100 + torch.randint(0, 5, (1,), generator=rng)
    return of(images.to(torch.uint8), labels)


def test_a_rare_class_is_included_in_the_choice() -> None:
    """2 of 20,000 images are of the rare class, which a sample of 5,000 would mostly miss."""
    data = halves(20000, 0)
    assert data.labels is not None
    labels = torch.zeros(20000, dtype=torch.int64)
    labels[[7, 1500]] = 1
    for seed in range(5):
        encoder = Encoder(Maps(), [0.0] * 3, [1.0] * 3, image_size=8)
        device = Device(name="cpu", precision="fp32", memory_format="contiguous", compile=None, threads=None)
        assert set(better_pooling(encoder, of_rows(data, labels), None, device, seed)[1]) == {"average", "grid"}


@pytest.mark.parametrize(("kind", "best"), [(halves, "grid"), (shades, "average")])
@pytest.mark.parametrize("validation", [True, False])
def test_the_pooling_whose_features_separate_the_classes_is_chosen(kind: Any, best: str, validation: bool) -> None:
    encoder = Encoder(Maps(), [0.0] * 3, [1.0] * 3, image_size=8)
    device = Device(name="cpu", precision="fp32", memory_format="contiguous", compile=None, threads=None)
    data, val = kind(12, 0), kind(100, 1)
    encoder.pooling, scores, best_c = better_pooling(encoder, data, val if validation else None, device, seed=0)
    assert encoder.pooling == best == max(scores, key=lambda r: scores[r])
    assert encoder(torch.rand(2, 3, 8, 8)).shape == (2, encoder.feature_dim) == (2, {"average": 3, "grid": 24}[best])
    features, labels = labeled_features(encoder, data, device)
    val_features = labeled_features(encoder, val, device) if validation else None
    searched, given = (regression(features, labels, val_features, 0, 2, c) for c in (None, best_c))
    assert searched[2] == best_c
    assert searched[0].equal(given[0])


class Pixels(nn.Module):
    """A backbone that returns the images as its two maps."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = [3, 3]

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x, x]


def flat(shades: Tensor, labels: Tensor) -> Dataset:
    """Return images of one shade each, of 255."""
    rows = shades.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 8, 8, 3).contiguous()
    return Dataset(Images([rows], np.zeros((len(rows), 16), np.uint8)), labels, ["dark", "light"], [""] * len(rows))


def pooling_scores(data: Dataset, val: Dataset | None) -> tuple[str, dict[str, float], float]:
    device = Device(name="cpu", precision="fp32", memory_format="contiguous", compile=None, threads=None)
    return better_pooling(Encoder(Pixels(), [0.0] * 3, [1.0] * 3, image_size=8), data, val, device, seed=0)


@pytest.mark.parametrize(("accuracy", "regularization"), [(1.0, "weakest"), (0.6, "some")])
def test_of_equally_accurate_regressions_the_likelier_is_chosen(accuracy: float, regularization: str) -> None:
    """Every C separates the two points; if 4 in 10 validation labels are wrong, full confidence has a high loss."""
    x, y = torch.tensor([[-1.0], [1.0]]).repeat(20, 1), torch.tensor([0, 1]).repeat(20)
    val_y = torch.where(torch.arange(40) < 40 * accuracy, y, 1 - y)
    fitted = {c: LogisticRegression(C=c).fit(x.numpy(), y.numpy()) for c in C_VALUES}
    assert {m.score(x.numpy(), val_y.numpy()) for m in fitted.values()} == {accuracy}
    likeliest = min(C_VALUES, key=lambda c: log_loss(val_y, fitted[c].predict_proba(x.numpy())))
    assert (likeliest == C_VALUES[-1]) == (regularization == "weakest")
    assert regression(x, y, (x, val_y), seed=0, classes=2)[2] == likeliest


def test_of_equally_accurate_poolings_the_likelier_is_chosen() -> None:
    """In flat images the grid repeats the same number, so that its regularization is effectively weaker."""
    labels = torch.arange(40) % 2
    data = flat(100 + 60 * labels, labels)
    better, scores, _ = pooling_scores(data, data)
    assert scores == {"average": 1.0, "grid": 1.0}
    assert better == "grid"


def test_validation_is_standardized_as_training_is() -> None:
    """The validation images are of one class, with a different mean and standard deviation."""
    rng = torch.Generator().manual_seed(0)
    labels = (torch.arange(80) % 4 == 0).long()
    shades = 100 + 60 * labels + 25 * torch.randn(80, generator=rng)
    val_shades, val_labels = 152 + 10 * torch.randn(60, generator=rng), torch.ones(60, dtype=torch.int64)
    data, val = flat(shades, labels), flat(val_shades, val_labels)

    def features(of: Dataset) -> np.ndarray:
        return of.images[:].float().div(255).mean((2, 3)).numpy()

    def score(c: float) -> float:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=300, tol=1e-3))
        return float(model.fit(features(data), labels).score(features(val), val_labels))

    best = max(map(score, C_VALUES))
    assert 0.6 < best < 1
    assert pooling_scores(data, val)[1]["average"] == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("informative", [True, False])
def test_classes_without_a_label_are_never_predicted(informative: bool) -> None:
    """Not even if the features are not informative, nor far away from the training data."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.tensor([1, 2, 4]).repeat(20)
    x = torch.randn(60, 5, generator=rng) + labels[:, None] if informative else torch.zeros(60, 5)
    weight, bias, _ = regression(x, labels, None, seed=0, classes=6)
    queries = torch.cat([x, 100 * torch.randn(200, 5, generator=rng)]) if informative else x
    p = (queries @ weight.T + bias).softmax(1)
    assert set(p.argmax(1).tolist()) <= {1, 2, 4}
    assert p[:, [0, 3, 5]].max() < 1e-3
    assert p.shape == (len(queries), 6)


def test_two_labeled_classes_among_more_are_separated() -> None:
    x, labels = torch.tensor([[-2.0], [2.0]]).repeat(20, 1), torch.tensor([1, 3]).repeat(20)
    weight, bias, c = regression(x, labels, None, seed=0, classes=5)
    p = (x @ weight.T + bias).softmax(1)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=c, tol=1e-3)).fit(x.numpy(), labels.numpy())
    assert p[:, [1, 3]].numpy() == pytest.approx(theirs.predict_proba(x.numpy()), abs=1e-3)
    assert p[:, [0, 2, 4]].max() < 1e-3


def test_c_is_that_of_the_chosen_pooling(monkeypatch: pytest.MonkeyPatch) -> None:
    searches = iter([{0.1: (0.9, -1.0), 1.0: (0.8, -1.0)}, {1.0: (0.4, -1.0), 10.0: (0.5, -1.0)}])  # average, grid
    monkeypatch.setattr(probe, "_search", lambda *_: next(searches))
    pooling, scores, c = pooling_scores(halves(12, 0), None)
    assert (pooling, scores, c) == ("average", {"average": 0.9, "grid": 0.5}, 0.1)
