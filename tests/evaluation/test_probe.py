"""Logistic regression on frozen features, its cross-validation, and the choice of C."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, log_loss, recall_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from sslrun.data.balance import Balance
from sslrun.data.dataset import Dataset
from sslrun.data.images import Images
from sslrun.data.labeled import Labeled
from sslrun.data.labels import Fold, folds
from sslrun.evaluation import probe
from sslrun.evaluation.probe import C_VALUES, best_c, map_probes, regression, regressions
from sslrun.evaluation.selection import Predictions, choose, score
from sslrun.models.encoder import Encoder
from tests.helpers import CPU


def sklearn(c: float) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=300, tol=1e-3))


def overlapping(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return two features of n images of three overlapping classes."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 3)
    return torch.from_numpy(rng.normal(size=(n, 2)) + 1.2 * labels[:, None]).float(), torch.from_numpy(labels)


def test_regressions_are_those_of_scikit_learn_on_each_fold_and_standardized_by_its_training_part() -> None:
    x, labels = overlapping(40)
    x[:20] += 3  # the parts have different means
    parts = [Fold(np.arange(20), np.arange(20, 30)), Fold(np.arange(10, 30), np.arange(10))]
    p = regressions(x, labels, parts, 3)
    assert p.shape == (len(C_VALUES), 40, 3)
    assert np.flatnonzero(np.isnan(p).any((0, 2))).tolist() == [*range(10, 20), *range(30, 40)]
    for i, c in enumerate(C_VALUES):
        for fold in parts:
            model = sklearn(c).fit(x[fold.train].numpy(), labels[fold.train].numpy())
            assert np.allclose(p[i, fold.val], model.predict_proba(x[fold.val].numpy()), atol=5e-3)


def test_the_regressions_have_seven_powers_of_ten_for_c() -> None:
    assert list(C_VALUES) == pytest.approx([1e-4, 1e-3, 1e-2, 0.1, 1, 10, 100])


def test_labels_of_validation_images_do_not_change_their_probabilities() -> None:
    x, labels = overlapping(30)
    other = labels.clone()
    other[20:] = (other[20:] + 1) % 3
    fold = [Fold(np.arange(20), np.arange(20, 30))]
    assert np.array_equal(regressions(x, labels, fold, 3), regressions(x, other, fold, 3), equal_nan=True)


@pytest.mark.parametrize(("accuracy", "regularization"), [(1.0, "weakest"), (0.6, "some")])
def test_of_equally_accurate_regressions_the_likelier_is_chosen(accuracy: float, regularization: str) -> None:
    """Every C separates the two points; if 4 in 10 validation labels are wrong, full confidence has a high loss."""
    x, y = torch.tensor([[-1.0], [1.0]]).repeat(20, 1), torch.tensor([0, 1]).repeat(20)
    val_y = torch.where(torch.arange(40) < 40 * accuracy, y, 1 - y)
    fitted = {c: LogisticRegression(C=c).fit(x.numpy(), y.numpy()) for c in C_VALUES}
    assert {m.score(x.numpy(), val_y.numpy()) for m in fitted.values()} == {accuracy}
    likeliest = min(C_VALUES, key=lambda c: log_loss(val_y, fitted[c].predict_proba(x.numpy())))
    assert (likeliest == C_VALUES[-1]) == (regularization == "weakest")
    fold = [Fold(np.arange(40), np.arange(40, 80))]
    assert best_c(torch.cat([x, x]), torch.cat([y, val_y]), fold, 2) == likeliest


def test_the_best_c_is_the_most_accurate_one_of_all_folds_together() -> None:
    x, labels = overlapping(60)
    x = torch.cat([x, torch.randn(60, 30)], 1)
    parts = folds(labels.numpy(), 5, 0)
    accuracies = []
    for c in C_VALUES:
        correct = [
            sklearn(c).fit(x[f.train].numpy(), labels[f.train].numpy()).predict(x[f.val].numpy())
            == labels[f.val].numpy()
            for f in parts
        ]
        accuracies.append(np.concatenate(correct).mean())
    assert max(accuracies) > min(accuracies)
    assert accuracies[C_VALUES.index(best_c(x, labels, parts, 3))] == pytest.approx(max(accuracies), abs=0.02)


def test_without_folds_c_is_1() -> None:
    assert best_c(*overlapping(6), [], 3) == 1.0


def test_at_most_5000_images_of_a_fold_are_fitted_with_some_of_every_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 of 6,000 images are of the rare class, which a sample of 5,000 may miss."""
    labels = torch.zeros(6100, dtype=torch.int64)
    labels[[7, 1500]] = 1
    fitted: list[tuple[Tensor, Tensor]] = []

    def recorded(x: Tensor, y: Tensor, classes: int, c_values: Any, _: str) -> list[tuple[Tensor, Tensor]]:
        fitted.append((x, y))
        return [(torch.zeros(classes, 1), torch.zeros(classes))] * len(c_values)

    monkeypatch.setattr(probe, "_fitted", recorded)
    numbers = torch.arange(6100.0)[:, None]
    p = regressions(numbers, labels, [Fold(np.arange(6000), np.arange(6000, 6100))], 2)
    assert (p[:, 6000:] == 0.5).all()
    ((x, y),) = fitted
    assert 5000 <= len(x) == len(set(x[:, 0].tolist())) <= 5002
    assert torch.equal(y, labels[x[:, 0].long()])
    assert y.sum() >= 1
    assert x.max() < 6000


@pytest.mark.parametrize("informative", [True, False])
def test_classes_without_a_label_are_never_predicted(informative: bool) -> None:
    """Not even if the features are not informative, nor far away from the training data."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.tensor([1, 2, 4]).repeat(20)
    x = torch.randn(60, 5, generator=rng) + labels[:, None] if informative else torch.zeros(60, 5)
    weight, bias = regression(x, labels, 6, 1.0)
    queries = torch.cat([x, 100 * torch.randn(200, 5, generator=rng)]) if informative else x
    p = (queries @ weight.T + bias).softmax(1)
    assert set(p.argmax(1).tolist()) <= {1, 2, 4}
    assert p[:, [0, 3, 5]].max() < 1e-3
    assert p.shape == (len(queries), 6)


def test_two_labeled_classes_among_more_are_separated() -> None:
    x, labels = torch.tensor([[-2.0], [2.0]]).repeat(20, 1), torch.tensor([1, 3]).repeat(20)
    for c in (0.01, 10.0):
        weight, bias = regression(x, labels, 5, c)
        p = (x @ weight.T + bias).softmax(1)
        theirs = sklearn(c).fit(x.numpy(), labels.numpy())
        assert p[:, [1, 3]].numpy() == pytest.approx(theirs.predict_proba(x.numpy()), abs=1e-3)
        assert p[:, [0, 2, 4]].max() < 1e-3


@pytest.mark.parametrize("c", [0.01, 1.0])
@pytest.mark.parametrize("images", [12, 40])
def test_fewer_images_than_features_have_the_same_regression(c: float, images: int) -> None:
    """It is fitted in the span of the images."""
    rng = torch.Generator().manual_seed(images)
    labels = torch.arange(images) % 3
    x = torch.randn(images, 50, generator=rng) + 0.5 * labels[:, None]
    x[:, 7] = 0.3  # a feature that never changes
    x[1] = x[0]  # two equal images
    weight, bias = regression(x, labels, 3, c)
    queries = torch.randn(30, 50, generator=rng)
    queries[:, 7] = 0.3
    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000, tol=1e-6))
    theirs = model.fit(x.numpy(), labels.numpy()).predict_proba(queries.numpy())
    assert np.allclose((queries @ weight.T + bias).softmax(1), theirs, atol=2e-2)


@pytest.mark.parametrize("value", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("images", [6, 60])
def test_equal_images_have_the_frequencies_of_the_classes(images: int, value: float) -> None:
    labels = torch.arange(images) % 6 // 4  # two of three are of the first class
    x = torch.full((images, 20), value)
    weight, bias = regression(x, labels, 2, 1.0)
    assert torch.allclose((x @ weight.T + bias).softmax(1), torch.tensor([2 / 3, 1 / 3]), atol=1e-2)


def test_a_feature_that_never_changes_is_harmless() -> None:
    x, labels = overlapping(30)
    constant = torch.cat([x, torch.full((30, 1), 0.3)], 1)
    (w, b), (v, a) = (regression(f, labels, 3, 1.0) for f in (x, constant))
    assert torch.allclose(x @ w.T + b, constant @ v.T + a, atol=1e-3)


class TwoMaps(nn.Module):
    """A backbone whose first map shows all three colors and whose second only green."""

    channels = (3, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x, x[:, 1:2]]


def colored(labels: Tensor, seed: int) -> Dataset:
    """Return noisy images that differ between classes only in red."""
    rng = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, 40, (len(labels), 8, 8, 3), generator=rng)
    rows[..., 0] += 100 * labels.view(-1, 1, 1)
    images = Images([rows.to(torch.uint8)], np.zeros((len(rows), 16), np.uint8))
    return Dataset(images, labels, ["a", "b", "c"], [""] * len(rows))


@pytest.mark.parametrize("validation", [True, False])
def test_each_map_is_probed_on_test_images_with_the_best_c(validation: bool) -> None:
    """The first map shows red; of the test images, the last four are labeled wrongly."""
    encoder = Encoder(TwoMaps(), [0.0] * 3, [1.0] * 3, image_size=8)
    data, val = colored(torch.arange(30) % 2, 0), colored(torch.arange(12) % 2, 1)
    test = colored((torch.arange(20) // 2) % 2, 2)
    assert data.labels is not None
    assert test.labels is not None
    test.labels[-4:] = 2
    labeled = Labeled(data, data, val if validation else None, "extra" if validation else "inside")
    parts = [Fold(np.arange(30), np.arange(30, 42))] if validation else folds(data.labels.numpy(), 5, 0)
    results = map_probes(encoder, labeled, parts, test, CPU, 7)
    assert [(r["stage"], r["features"]) for r in results] == [(1, 3), (2, 1)]
    assert results[0]["probe_accuracy"] == results[0]["knn_accuracy"] == 0.8
    assert results[1]["knn_accuracy"] < 0.8
    x, xt = (d.images[:].float().div(255).mean((2, 3))[:, 1:2] for d in (labeled.every, test))
    every = labeled.every.labels
    assert every is not None
    model = sklearn(best_c(x, every, parts, 3)).fit(x[:30].numpy(), data.labels.numpy())  # not on validation
    assert results[1]["probe_accuracy"] == pytest.approx(model.score(xt.numpy(), test.labels.numpy()), abs=0.051)
    assert results[1]["probe_accuracy"] < 0.8


def imbalanced(n: int = 0) -> tuple[Tensor, Tensor]:
    """Overlapping classes of 120, 20 and 8 images, on a line; ids 0, 2 and 3 of 4."""
    labels = torch.tensor([0] * 120 + [2] * 20 + [3] * 8)
    rng = np.random.default_rng(n)
    return torch.from_numpy(rng.normal(size=(148, 2)) + 0.7 * labels.numpy()[:, None]).float(), labels


def test_many_classes_with_few_labels_are_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    labels = torch.arange(22).repeat(2)
    features = torch.eye(22).repeat(2, 1)
    regression(features, labels, 22, 1.0)
    assert not recwarn.list


@pytest.mark.parametrize("balance", ["sampling", "weights"])
def test_a_regression_weights_the_classes(balance: Balance) -> None:
    x, labels = imbalanced()
    n = {0: 120, 2: 20, 3: 8}
    if balance == "sampling":
        weights = {c: 148 / (3 * k) for c, k in n.items()}
    else:
        raw = {c: (1 - 0.999) / (1 - 0.999**k) for c, k in n.items()}
        weights = {c: w * 148 / sum(raw[i] * k for i, k in n.items()) for c, w in raw.items()}
    weight, bias = regression(x, labels, 4, 1.0, balance)
    model = sklearn(1.0)
    model.fit(x, labels, logisticregression__sample_weight=[weights[k] for k in labels.tolist()])
    p = (x @ weight.T + bias).softmax(1)[:, [0, 2, 3]]
    assert torch.allclose(p, torch.from_numpy(model.predict_proba(x)).float(), atol=5e-3)


def test_a_regression_with_logit_adjustment_has_probabilities_divided_by_the_priors() -> None:
    x, labels = imbalanced()
    plain, adjusted = (
        (x @ weight.T + bias).softmax(1)
        for weight, bias in (regression(x, labels, 4, 1.0, b) for b in ("none", "logit"))
    )
    expected = plain[:, [0, 2, 3]] / torch.tensor([120, 20, 8])
    assert torch.allclose(adjusted[:, [0, 2, 3]], expected / expected.sum(1, keepdim=True), atol=1e-3)
    assert 1 not in adjusted.argmax(1)


@pytest.mark.parametrize("balance", ["sampling", "weights", "logit"])
def test_balancing_finds_more_of_the_rare_classes(balance: Balance) -> None:
    x, labels = imbalanced()
    test_x, test_labels = imbalanced(2)
    parts = folds(labels.numpy(), 5, 0)
    recalls, scores = {}, {}
    methods: tuple[Balance, ...] = ("none", balance)
    for b in methods:
        predictions = Predictions(
            [""] * len(C_VALUES), regressions(x, labels, parts, 4, b), labels.numpy(), b != "none"
        )
        best = choose(predictions)
        weight, bias = regression(x, labels, 4, C_VALUES[best], b)
        recalls[b] = recall_score(test_labels, (test_x @ weight.T + bias).argmax(1), average="macro")
        scores[b] = score(predictions, best)
        expected = f1_score(labels, predictions.probabilities[best].argmax(1), average="macro")
        assert b == "none" or scores[b] == pytest.approx(expected)
    assert recalls[balance] > recalls["none"] + 0.02
