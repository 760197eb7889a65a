"""Logistic regression on frozen features, and the choice of C and pooling."""

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
from sslrun.device import Device
from sslrun.evaluation import probe
from sslrun.evaluation.probe import C_VALUES, better_pooling, fit_head, labeled_features, regression
from sslrun.models.classifier import Classifier
from sslrun.models.encoder import Encoder
from tests.helpers import CPU


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


def test_a_head_is_set_to_the_regression_also_for_classes_without_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(30) % 2
    x = torch.randn(30, 3, generator=rng) + labels[:, None]
    encoder = Encoder(Maps(), [0.0] * 3, [1.0] * 3, image_size=8)
    for given, classes in ((None, 2), (0.01, 4)):
        classifier = Classifier(encoder, classes)
        c = fit_head(classifier, x, labels, None, 0, given)
        weight, bias, expected = regression(x, labels, None, 0, classes, given)
        assert c == expected == (given or c)
        assert torch.equal(classifier.head.weight, weight)
        assert torch.equal(classifier.head.bias, bias)
        assert bias.abs().min() > 0


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
def test_each_map_is_probed_on_test_images_with_c_chosen_on_validation(
    validation: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first map shows red; of the test images, the last four are labeled wrongly."""
    encoder = Encoder(TwoMaps(), [0.0] * 3, [1.0] * 3, image_size=8)
    data, val = colored(torch.arange(30) % 2, 0), colored(torch.arange(12) % 2, 1)
    test = colored((torch.arange(20) // 2) % 2, 2)
    assert test.labels is not None
    test.labels[-4:] = 2
    seen = []

    def recorded(*arguments: Any, **keys: Any) -> Any:
        seen.append(arguments[2:])
        return regression(*arguments, **keys)

    monkeypatch.setattr(probe, "regression", recorded)
    results = probe.map_probes(encoder, data, val if validation else None, test, CPU, 5, 7)
    assert [(r["stage"], r["features"]) for r in results] == [(1, 3), (2, 1)]
    assert results[0]["probe_accuracy"] == results[0]["knn_accuracy"] == 0.8
    assert results[1]["probe_accuracy"] < 0.8
    assert results[1]["knn_accuracy"] < 0.8
    for (given, seed, classes), feature_map in zip(seen, (slice(0, 3), slice(1, 2)), strict=True):
        assert (seed, classes) == (5, 3)
        if not validation:
            assert given is None
            continue
        means = val.images[:].float().div(255).mean((2, 3))[:, feature_map]
        assert torch.allclose(given[0], means, atol=1e-5)
        assert val.labels is not None
        assert torch.equal(given[1], val.labels)


def test_at_most_10000_images_drawn_at_random_are_probed() -> None:
    rows = probe._subset(25_000)
    assert len(rows) == len(set(rows)) == 10_000
    assert rows.tolist() == sorted(rows)
    assert rows.max() > 24_900
    assert probe._subset(7).tolist() == list(range(7))


def test_the_search_of_c_is_over_seven_powers_of_ten_on_at_most_5000_images(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(C_VALUES) == pytest.approx([1e-4, 1e-3, 1e-2, 0.1, 1, 10, 100])
    labels = torch.zeros(6000, dtype=torch.int64)
    labels[:3] = torch.tensor([1, 1, 1])
    samples = [probe._sample(labels, probe.SEARCHED, seed) for seed in range(3)]
    for sample in samples:
        assert 5000 <= len(sample) == len(set(sample)) <= 5002
        assert int(labels[torch.from_numpy(sample)].sum()) >= 2
    assert samples[0].tolist() != samples[1].tolist()
    few = probe._sample(labels, 10, 0)
    assert np.bincount(labels.numpy()[few]).tolist() in ([10, 2], [9, 2], [8, 2])
    given: list[int] = []

    def no_folds(x: np.ndarray, y: np.ndarray, seed: int, groups: np.ndarray | None) -> Any:
        given.append(len(x))
        return x, y, []

    monkeypatch.setattr(probe, "_cross_validation", no_folds)
    assert probe._search(torch.randn(6000, 1), labels, None, 0) == {1.0: (0.0, 0.0)}
    assert given[0] <= 5002


def test_folds_are_five_or_as_many_as_the_smallest_class_has_images() -> None:
    """Of classes of 9, 3 and 1 images, the last cannot be in both parts."""
    y = np.array([0] * 9 + [1] * 3 + [2])
    x = np.arange(13.0)[:, None]
    kept, labels, folds = probe._cross_validation(x, y, seed=0)
    assert kept[:, 0].tolist() == list(range(12))
    assert labels.tolist() == y[:12].tolist()
    assert [np.bincount(labels[test]).tolist() for _, test in folds] == [[3, 1]] * 3
    assert all(sorted([*train, *test]) == list(range(12)) for train, test in folds)
    other = probe._cross_validation(x, y, seed=1)[2]
    assert [t.tolist() for _, t in folds] != [t.tolist() for _, t in other]
    assert len(probe._cross_validation(np.zeros((40, 1)), np.arange(40) % 2, 0)[2]) == 5
    assert probe._cross_validation(x[:10], np.array([0] * 9 + [1]), 0)[2] == []


def test_scores_of_a_regression_count_classes_without_training_labels_as_wrong() -> None:
    model = LogisticRegression().fit(np.array([[-1.0], [1.0]] * 5), np.array([2, 5] * 5))
    x, y = np.array([[-1.0], [1.0], [1.0]]), np.array([2, 5, 3])
    p = model.predict_proba(x)
    scores = probe._scores("none", torch.tensor([2, 5] * 5), model, x, y)
    assert scores["score"] == pytest.approx(2 / 3)
    assert scores["log_likelihood"] == pytest.approx((np.log(p[0, 0]) + np.log(p[1, 1]) + np.log(1e-9)) / 3)


def test_the_search_gives_accuracy_and_likelihood_by_c() -> None:
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(np.arange(40) % 2)
    x, val_x = (torch.from_numpy(rng.normal(size=(40, 2)) + labels.numpy()[:, None]).float() * 7 for _ in range(2))
    result = probe._search(x, labels, (val_x, labels), 0)
    assert list(result) == list(C_VALUES)
    for c, (accuracy, likelihood) in result.items():
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=300, tol=1e-3)).fit(x, labels)
        assert accuracy == pytest.approx(model.score(val_x, labels))
        assert likelihood == pytest.approx(-log_loss(labels, model.predict_proba(val_x)), abs=1e-4)


def test_the_accuracies_of_poolings_and_the_sample_are_those_of_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[tuple[int, int]] = []

    def sample(labels: Tensor, size: int, seed: int, groups: np.ndarray | None) -> np.ndarray:
        seeds.append((size, seed))
        return np.arange(8)

    monkeypatch.setattr(probe, "_sample", sample)
    monkeypatch.setattr(probe, "_search", lambda x, y, val, seed, *_: {float(len(y)): (0.123456789, -1.0 - seed)})
    device = Device(name="cpu", precision="fp32", memory_format="contiguous", compile=None, threads=None)
    encoder = Encoder(Pixels(), [0.0] * 3, [1.0] * 3, image_size=8)
    assert better_pooling(encoder, halves(12, 0), None, device, 3) == (
        "average", {"average": 0.123457, "grid": 0.123457}, 8.0,
    )  # fmt: skip
    assert seeds == [(probe.SEARCHED, 3)]


def test_folds_do_not_divide_groups() -> None:
    """Classes of 5, 2 and 1 groups of 4 images: the last cannot be in both parts."""
    y, groups = np.repeat([0] * 5 + [1] * 2 + [2], 4), np.repeat([f"g{i}" for i in range(8)], 4).astype(object)
    kept, labels, folds = probe._cross_validation(np.arange(32.0)[:, None], y, 0, groups)
    assert kept[:, 0].tolist() == list(range(28))
    assert len(folds) == 2
    for train, test in folds:
        assert sorted([*train, *test]) == list(range(28))
        assert not {*groups[train]} & {*groups[test]}
        assert {*labels[train]} == {*labels[test]} == {0, 1}
    assert probe._cross_validation(np.zeros((8, 1)), np.repeat([0, 1], 4), 0, np.array([*"aaaabbbb"]))[2] == []
    mixed = np.array([*"ababcccc"])  # of two groups of each class, a fold would have all of one class
    for train, _ in probe._cross_validation(np.zeros((8, 1)), np.array([0, 0, 1, 1, 1, 1, 1, 1]), 0, mixed)[2]:
        assert len(train) > 0


def test_a_sample_has_images_of_two_groups_of_each_class() -> None:
    labels, groups = torch.tensor([0] * 90 + [1] * 10), np.array(["a"] * 45 + ["b"] * 45 + ["c"] * 9 + ["d"])
    for seed in range(5):
        rows = probe._sample(labels, 8, seed, groups)
        assert {*groups[rows]} == {*"abcd"}
        assert rows[:8].tolist() == probe._sample(labels, 8, seed)[:8].tolist()


def test_c_and_pooling_are_chosen_on_other_groups_than_those_fitted() -> None:
    """Features that name the object predict the class of known objects alone: a small C is as good for others."""
    rng = torch.Generator().manual_seed(0)
    own = torch.randn(24, 12, generator=rng)
    labels, groups = (torch.arange(24) % 2).repeat_interleave(5), np.repeat([f"g{i}" for i in range(24)], 5)
    features = (own.repeat_interleave(5, 0) + 0.01 * torch.randn(120, 12, generator=rng)).float()
    known = probe._search(features, labels, None, 0)
    others = probe._search(features, labels, None, 0, groups)
    assert max(known.values())[0] > 0.9
    assert max(others.values())[0] < 0.7
    weight, _, c = regression(features, labels, None, 0, 2, groups=groups)
    assert c == probe._best(others) < probe._best(known)
    assert weight.shape == (2, 12)


def imbalanced(n: int = 0) -> tuple[Tensor, Tensor]:
    """Overlapping classes of 120, 20 and 8 images, on a line; ids 0, 2 and 3 of 4."""
    labels = torch.tensor([0] * 120 + [2] * 20 + [3] * 8)
    rng = np.random.default_rng(n)
    return torch.from_numpy(rng.normal(size=(148, 2)) + 0.7 * labels.numpy()[:, None]).float(), labels


@pytest.mark.parametrize("balance", ["sampling", "weights"])
def test_a_regression_weights_the_classes(balance: Balance) -> None:
    x, labels = imbalanced()
    n = {0: 120, 2: 20, 3: 8}
    if balance == "sampling":
        weights = {c: 148 / (3 * k) for c, k in n.items()}
    else:
        raw = {c: (1 - 0.999) / (1 - 0.999**k) for c, k in n.items()}
        weights = {c: w * 148 / sum(raw[i] * k for i, k in n.items()) for c, w in raw.items()}
    weight, bias, _ = regression(x, labels, None, 0, 4, 1.0, balance=balance)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=300, tol=1e-3))
    model.fit(x, labels, logisticregression__sample_weight=[weights[k] for k in labels.tolist()])
    p = (x @ weight.T + bias).softmax(1)[:, [0, 2, 3]]
    assert torch.allclose(p, torch.from_numpy(model.predict_proba(x)).float(), atol=2e-3)


def test_a_regression_with_logit_adjustment_has_probabilities_divided_by_the_priors() -> None:
    x, labels = imbalanced()
    plain, adjusted = (
        (x @ weight.T + bias).softmax(1)
        for weight, bias, _ in (regression(x, labels, None, 0, 4, 1.0, balance=b) for b in ("none", "logit"))
    )
    expected = plain[:, [0, 2, 3]] / torch.tensor([120, 20, 8])
    assert torch.allclose(adjusted[:, [0, 2, 3]], expected / expected.sum(1, keepdim=True), atol=1e-3)
    assert 1 not in adjusted.argmax(1)


@pytest.mark.parametrize("balance", ["sampling", "weights", "logit"])
@pytest.mark.parametrize("validation", [True, False])
def test_balancing_finds_more_of_the_rare_classes_and_c_is_chosen_by_macro_f1(
    balance: Balance, validation: bool
) -> None:
    x, labels = imbalanced()
    val = imbalanced(1) if validation else None
    test_x, test_labels = imbalanced(2)
    recalls = {}
    methods: tuple[Balance, ...] = ("none", balance)
    for b in methods:
        weight, bias, c = regression(x, labels, val, 0, 4, balance=b)
        recalls[b] = recall_score(test_labels, (test_x @ weight.T + bias).argmax(1), average="macro")
        scores = probe._search(x, labels, val, 0, balance=b)
        assert c == max(scores, key=lambda k: scores[k])
        if val is not None:
            p = (val[0] @ weight.T + bias).argmax(1)
            expected = (p == val[1]).float().mean() if b == "none" else f1_score(val[1], p, average="macro")
            assert scores[c][0] == pytest.approx(float(expected), abs=1e-6)
    assert recalls[balance] > recalls["none"] + 0.02
