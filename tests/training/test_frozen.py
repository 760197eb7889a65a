"""A frozen network: its features, and the choice of pooling and C."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from sslrun.data.balance import Balance
from sslrun.data.dataset import Dataset
from sslrun.data.images import Images
from sslrun.data.labels import Fold, folds
from sslrun.evaluation import probe
from sslrun.evaluation.probe import C_VALUES, regression, regressions
from sslrun.evaluation.selection import Predictions, score
from sslrun.models.encoder import Encoder
from sslrun.models.features import features
from sslrun.training.frozen import Frozen
from tests.helpers import CPU
from tests.training.folding import encoder, red_and_blue


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


def halves(n: int) -> Dataset:
    """Return images whose left or right half is brighter; the mean is the same for both classes."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 2
    images = torch.randint(0, 100, (n, 3, 8, 8), generator=rng)
    for image, label in zip(images, labels, strict=True):
        image[:, :, 4 * label : 4 * label + 4] += 20
    return of(images.to(torch.uint8), labels)


def shades(n: int) -> Dataset:
    """Return light and dark images with a bright spot anywhere; the mean separates them better than the grid."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 2
    images = torch.full((n, 3, 8, 8), 60) + 6 * labels.view(n, 1, 1, 1)
    for image in images:
        y, x = (4 * torch.randint(0, 2, (2,), generator=rng)).tolist()
        image[:, y : y + 4, x : x + 4] += 100 + torch.randint(0, 5, (1,), generator=rng)
    return of(images.to(torch.uint8), labels)


def rows_of(data: Dataset, n: int, split: bool) -> list[Fold]:
    """Return three folds of the first n images, or one with all others for validation."""
    assert data.labels is not None
    if split:
        return [Fold(np.arange(n), np.arange(n, len(data)))]
    return folds(data.labels.numpy()[:n], 3, 0)


@pytest.mark.parametrize(("kind", "best"), [(halves, "grid"), (shades, "average")])
@pytest.mark.parametrize("split", [True, False])
def test_the_pooling_whose_features_separate_the_classes_is_chosen(kind: Any, best: str, split: bool) -> None:
    data, network = kind(112 if split else 12), Encoder(Maps(), [0.0] * 3, [1.0] * 3, image_size=8)
    frozen = Frozen(network, "auto", data, rows_of(data, 12, split), CPU, "none")
    assert frozen.pooling == network.pooling == best
    assert frozen.variants == [f"{p} C={c:g}" for p in ("average", "grid") for c in C_VALUES]
    predictions = Predictions([""] * 14, frozen.probabilities, data.labels.numpy())
    scores = [score(predictions, i) for i in range(14)]
    assert scores[frozen.variants.index(f"{frozen.pooling} C={frozen.c:g}")] == max(scores)
    assert {p: x.shape for p, x in frozen.features.items()} == {"average": (len(data), 3), "grid": (len(data), 24)}


@pytest.mark.parametrize("pooling", ["average", "grid"])
def test_a_given_pooling_is_kept(pooling: Any) -> None:
    data, network = halves(12), Encoder(Maps(), [0.0] * 3, [1.0] * 3, image_size=8)
    frozen = Frozen(network, pooling, data, rows_of(data, 12, False), CPU, "none")
    assert frozen.pooling == network.pooling == pooling
    assert {v.split()[0] for v in frozen.variants} == {pooling}
    assert torch.equal(frozen.features[pooling], features(network, data.images, CPU))


def test_the_probabilities_are_those_of_regressions_on_the_training_parts() -> None:
    data, network = red_and_blue(20), encoder()
    assert data.labels is not None
    parts = [Fold(np.arange(6), np.arange(6, 14)), Fold(np.arange(6, 14), np.arange(6))]  # not of the last six
    frozen = Frozen(network, "average", data, parts, CPU, "none")
    x = features(network, data.images, CPU)
    assert np.array_equal(frozen.probabilities, regressions(x, data.labels, parts, 2), equal_nan=True)
    weight, bias = regression(x[6:14], data.labels[6:14], 2, C_VALUES[3])
    expected = (x[:6] @ weight.T + bias).softmax(1)
    assert np.allclose(frozen.probabilities[3, :6], expected, atol=1e-5)
    assert np.isnan(frozen.probabilities[:, 14:]).all()
    assert not np.isnan(frozen.probabilities[:, :14]).any()


def test_the_head_is_the_regression_of_the_given_images_with_the_best_c() -> None:
    data, network = red_and_blue(20), encoder()
    frozen = Frozen(network, "auto", data, rows_of(data, 20, False), CPU, "none")
    rows = np.array([0, 1, 2, 3, 7, 8, 12])
    weight, bias = frozen.head(rows)
    x = features(network, data.images, CPU)[rows]  # the network has the chosen pooling
    expected = regression(x, frozen.labels[rows], 2, frozen.c)
    assert torch.allclose(weight, expected[0], atol=1e-5)
    assert torch.allclose(bias, expected[1], atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.1, 0.3])
@pytest.mark.parametrize("c", [1e-4, 1.0, 100.0])
def test_the_initial_head_predicts_like_the_regression_at_the_scale_with_the_lowest_loss(
    c: float, smoothing: float
) -> None:
    frozen = Frozen(encoder(), "average", red_and_blue(40), [], CPU, "none")
    frozen.c = c
    rows = np.arange(30)
    (weight, bias), (scaled, shift) = frozen.head(rows), frozen.initial_head(rows, smoothing)
    x, labels = frozen.features["average"][:30], frozen.labels[:30]
    scale = float(scaled.norm() / weight.norm())
    assert torch.allclose(scaled, scale * weight, rtol=1e-4)
    assert torch.allclose(shift, scale * bias, rtol=1e-4)
    logits = x @ scaled.T + shift

    def loss(multiple: float) -> float:
        return float(F.cross_entropy(multiple * logits, labels, label_smoothing=smoothing))

    assert loss(1.0) == pytest.approx(min(loss(m) for m in np.linspace(0.5, 2, 31)), abs=1e-4)
    assert loss(1.0) <= min(loss(0.9), loss(1.1))


@pytest.mark.parametrize("balance", ["none", "sampling", "weights", "logit"])
def test_the_scale_of_the_initial_head_is_that_of_the_loss_that_is_trained(balance: Balance) -> None:
    frozen = Frozen(encoder(), "average", red_and_blue(80), [], CPU, balance)
    labels = frozen.labels
    rows = np.concatenate([(labels == 0).nonzero()[:24, 0], (labels == 1).nonzero()[:3, 0]])
    weight, bias = frozen.initial_head(rows, 0.1)
    x, y = frozen.features["average"][rows].double(), labels[rows]
    n = torch.tensor([24.0, 3.0]).double()
    of_class = {"sampling": 1 / n, "weights": 1 / (1 - 0.999**n)}.get(balance, torch.ones(2))
    certain = F.one_hot(y, 2).double()
    target = 0.9 * certain + 0.1 * (n / 27 if balance == "logit" else 0.5)

    def loss(multiple: float) -> float:
        logits = multiple * (x @ weight.double().T + bias) + (n / 27).log() * (balance == "logit")
        return float(-((target * logits.log_softmax(1)).sum(1) * of_class[y]).sum())

    scales = np.linspace(0.8, 1.25, 181)
    assert scales[np.argmin([loss(s) for s in scales])] == pytest.approx(1.0, abs=0.01)


def test_classes_without_labels_and_no_smoothing_leave_the_initial_head_finite() -> None:
    data = red_and_blue(40)
    data.class_names = ["red", "blue", "green"]
    frozen = Frozen(encoder(), "average", data, [], CPU, "none")
    rows = np.arange(30)
    weight, bias = frozen.initial_head(rows, 0.0)
    assert weight.isfinite().all()
    assert bias.isfinite().all()
    x = frozen.features["average"]
    regression_weight, regression_bias = frozen.head(rows)
    predicted = (x @ regression_weight.T + regression_bias).argmax(1)
    assert torch.equal((x @ weight.T + bias).argmax(1), predicted)
    assert 2 not in predicted


def test_regressions_run_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    fitted = probe._fitted

    def counting(*given: Any) -> Any:
        threads.append(torch.get_num_threads())
        return fitted(*given)

    monkeypatch.setattr(probe, "_fitted", counting)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        data = red_and_blue(20)
        Frozen(encoder(), "average", data, rows_of(data, 20, False), CPU, "none").head(np.arange(10))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert len(threads) > 2
    assert {*threads} == {1}


def test_without_folds_the_defaults_are_used() -> None:
    for pooling, expected in (("auto", "average"), ("grid", "grid")):
        frozen = Frozen(encoder(), pooling, red_and_blue(4), [], CPU, "none")
        assert (frozen.pooling, frozen.c) == (expected, 1.0)
        assert np.isnan(frozen.probabilities).all()
        assert frozen.head(np.arange(4))[0].shape == (2, 8 if expected == "average" else 4 * (4 + 8))


def test_the_initial_weights_are_kept_while_the_network_is_trained() -> None:
    network = encoder()
    before = {k: v.numpy().copy() for k, v in network.state_dict().items()}
    frozen = Frozen(network, "average", red_and_blue(4), [], CPU, "none")
    for parameter in network.parameters():
        parameter.data.fill_(7)
    assert frozen.state.keys() == before.keys()
    assert all(np.array_equal(frozen.state[k], v) for k, v in before.items())


def test_a_knn_classifier_chooses_the_pooling_by_its_neighbors() -> None:
    data, network = halves(40), Encoder(Maps(), [0.0] * 3, [1.0] * 3, image_size=8)
    assert data.labels is not None
    parts = rows_of(data, 40, False)
    frozen = Frozen(network, "auto", data, parts, CPU, "none", knn=True)
    assert frozen.variants == ["average", "grid"]
    assert frozen.pooling == network.pooling == "grid"
    x = nn.functional.normalize(frozen.features["grid"]).numpy()
    agree = []
    for part in parts:
        theirs = KNeighborsClassifier(1).fit(x[part.train], data.labels.numpy()[part.train]).predict(x[part.val])
        agree.append((frozen.probabilities[1, part.val].argmax(1) == theirs).mean())
    assert np.mean(agree) > 0.8  # ours weights more neighbors
    assert np.allclose(frozen.probabilities.sum(2), 1, atol=1e-5)


def test_with_balancing_macro_f1_decides() -> None:
    rng = torch.Generator().manual_seed(1)
    labels = (torch.arange(120) % 10 == 0).long()
    images = torch.randint(0, 100, (120, 3, 8, 8), generator=rng) + 3 * labels.view(-1, 1, 1, 1)
    data = of(images.to(torch.uint8), labels)
    network = Encoder(Maps(), [0.0] * 3, [1.0] * 3, image_size=8)
    frozen = Frozen(network, "auto", data, folds(labels.numpy(), 3, 0), CPU, "weights")
    best = frozen.variants.index(f"{frozen.pooling} C={frozen.c:g}")
    scores = {}
    for macro in (False, True):
        predictions = Predictions([""] * 14, frozen.probabilities, labels.numpy(), macro)
        scores[macro] = [score(predictions, i) for i in range(14)]
    assert scores[True][best] == max(scores[True])
    assert scores[False][best] < max(scores[False])
