import math
import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn import metrics
from sklearn.metrics import classification_report, confusion_matrix

from sslrun.evaluation.intervals import effective_size, proportion_interval, wilson_interval
from sslrun.evaluation.metrics import (
    alignment_and_uniformity,
    classification,
    embedding_health,
    f1_interval,
    has_collapsed,
    scored,
)


def test_case_61_a_collapsed_embedding_is_detected_and_a_healthy_one_is_not() -> None:
    rng = torch.Generator().manual_seed(0)
    healthy = torch.randn(500, 64, generator=rng)
    point = torch.ones(500, 64) + 1e-4 * healthy
    line = torch.randn(500, 1, generator=rng) * torch.ones(1, 64) + 1e-4 * healthy
    assert not has_collapsed(embedding_health(healthy))
    assert has_collapsed(embedding_health(point))
    assert has_collapsed(embedding_health(line))
    assert has_collapsed(embedding_health(torch.ones(500, 64)))


def test_spread_of_uniform_features_is_one_and_rank_is_the_dimension_of_their_plane() -> None:
    rng = torch.Generator().manual_seed(0)
    health = embedding_health(torch.randn(4000, 32, generator=rng))
    assert health["feature_spread"] == pytest.approx(1, abs=0.02)
    assert health["effective_rank"] == pytest.approx(32, rel=0.02)
    plane = torch.randn(4000, 5, generator=rng) @ torch.linalg.qr(torch.randn(32, 5, generator=rng))[0].T
    assert embedding_health(plane)["effective_rank"] == pytest.approx(5, rel=0.02)


def test_case_62_metrics_against_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    y, guess = rng.integers(0, 4, 200), rng.integers(0, 3, 200)  # class 3 is never predicted
    ours = classification(y, guess, ["a", "b", "c", "d"])
    theirs = classification_report(y, guess, target_names=list("abcd"), output_dict=True, zero_division=0)
    assert ours["accuracy"] == pytest.approx(theirs["accuracy"])
    assert ours["f1_macro"] == pytest.approx(theirs["macro avg"]["f1-score"])
    assert ours["precision_macro"] == pytest.approx(theirs["macro avg"]["precision"])
    for row in ours["classes"]:
        assert row["recall"] == pytest.approx(theirs[row["class"]]["recall"])
        assert row["images"] == theirs[row["class"]]["support"]
    assert ours["confusion_matrix"] == confusion_matrix(y, guess).tolist()


def test_scores_include_top_5_and_calibrated_metrics() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(21), 300)
    labels = rng.integers(0, 21, 300)
    result = scored(p, labels, list("abcdefghijklmnopqrstu"), 3.0)
    ranked = np.argsort(-p, 1)[:, :5]
    assert result["top5_accuracy"] == pytest.approx(np.mean([labels[i] in ranked[i] for i in range(300)]))
    assert result["nll_calibrated"] < result["nll"]  # the labels are random: flatter is better
    assert sum(r["images"] for r in result["reliability_calibrated"]) == 300
    assert "top5_accuracy" not in scored(p[:, :4] / p[:, :4].sum(1, keepdims=True), labels % 4, list("abcd"), 1.0)


def test_identical_features_have_no_spread() -> None:
    feature = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    health = embedding_health(feature.repeat(500, 1))
    assert health["feature_spread"] < 0.05
    assert health["effective_rank"] == 1
    assert has_collapsed(health)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_health_does_not_depend_on_the_length_of_the_features(scale: float) -> None:
    features = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
    expected = embedding_health(features)
    assert embedding_health(scale * features) == pytest.approx(expected, rel=1e-6)


def test_alignment_and_uniformity_against_naive_loops() -> None:
    x, y = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(0))
    a, b = (z.double() / z.double().norm(dim=1, keepdim=True) for z in (x, y))
    alignment = sum(float((a[i] - b[i]) @ (a[i] - b[i])) for i in range(7)) / 7
    pairs = [(i, j) for i in range(7) for j in range(i)]
    uniformity = math.log(sum(math.exp(-2 * float((a[i] - a[j]) @ (a[i] - a[j]))) for i, j in pairs) / len(pairs))
    found = alignment_and_uniformity(x, 3 * y)
    assert found == pytest.approx({"alignment": alignment, "uniformity": uniformity}, rel=1e-5)
    assert alignment_and_uniformity(x, x)["alignment"] == 0
    assert alignment_and_uniformity(torch.ones(5, 4), torch.ones(5, 4)) == {"alignment": 0.0, "uniformity": 0.0}
    wide = torch.randn(2, 500, 64, generator=torch.Generator().manual_seed(0))
    assert alignment_and_uniformity(*wide) == pytest.approx({"alignment": 2.0, "uniformity": -3.9}, rel=0.03)
    assert alignment_and_uniformity(x[:1], y[:1])["uniformity"] == 0


def test_the_effective_rank_does_not_count_the_mean_of_the_features() -> None:
    features = torch.randn(4000, 32, generator=torch.Generator().manual_seed(0)) + 3
    assert embedding_health(features)["effective_rank"] == pytest.approx(32, rel=0.02)
    assert not has_collapsed(embedding_health(features))


CLASSES = ["a", "b", "c", "d"]
AVERAGES = ("precision_macro", "balanced_accuracy", "f1_macro")


def test_precision_recall_and_f1_equal_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(4, 200, p=[0.6, 0.2, 0.15, 0.05])
    predicted = np.where(rng.random(200) < 0.5, labels, rng.integers(0, 3, 200))  # class d is hardly ever predicted
    result = classification(labels, predicted, CLASSES)
    theirs = {
        "precision": metrics.precision_score(labels, predicted, average=None, zero_division=0),
        "recall": metrics.recall_score(labels, predicted, average=None, zero_division=0),
        "f1": metrics.f1_score(labels, predicted, average=None, zero_division=0),
    }
    averages = [result[k] for k in AVERAGES]
    for name, average, values in zip(theirs, averages, theirs.values(), strict=True):
        assert average == pytest.approx(values.mean())
        assert [row[name] or 0 for row in result["classes"]] == pytest.approx(values)
    assert result["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(labels, predicted))
    assert len({round(v, 3) for v in (result["accuracy"], *averages)}) == 4
    assert [row["class"] for row in result["classes"]] == CLASSES
    assert [row["images"] for row in result["classes"]] == np.bincount(labels).tolist()


def test_rows_of_the_confusion_matrix_are_the_true_classes() -> None:
    matrix = classification(np.array([0, 0, 0, 1]), np.array([0, 1, 1, 2]), CLASSES)["confusion_matrix"]
    assert matrix == [[1, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_calibrated_scores_equal_those_of_the_tempered_probabilities() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 3, (300, 4)), rng.integers(0, 4, 300)
    result = scored(softmax(logits, 1), labels, CLASSES, 2.5)
    plain = scored(softmax(logits / 2.5, 1), labels, CLASSES, 1.0)
    for name in ("nll", "ece"):
        assert result[f"{name}_calibrated"] == pytest.approx(plain[name])
        assert result[name] != pytest.approx(plain[name], rel=0.05)
    for key in ("low", "high", "images", "confidence", "accuracy"):
        assert [r[key] for r in result["reliability_calibrated"]] == pytest.approx(
            [r[key] for r in plain["reliability"]]
        )
    assert [r["images"] for r in result["reliability"]] != [r["images"] for r in plain["reliability"]]
    assert result["temperature"] == 2.5


def test_the_top_5_accuracy_is_of_more_than_20_classes_of_which_some_may_be_missing() -> None:
    p = np.eye(21)[[0, 1, 2]] * 0.4 + np.linspace(0.06, 0.0, 21)
    p /= p.sum(1, keepdims=True)
    names = [str(k) for k in range(21)]
    assert scored(p, np.array([4, 4, 20]), names, 1.0)["top5_accuracy"] == pytest.approx(2 / 3)
    assert scored(p, np.array([5, 20, 20]), names, 1.0)["top5_accuracy"] == 0
    assert "top5_accuracy" not in scored(np.eye(20), np.arange(20), names[:20], 1.0)


def test_the_interval_of_the_accuracy_is_wilsons() -> None:
    p, labels = np.eye(2)[np.zeros(50, int)], np.array([0] * 40 + [1] * 10)
    result = scored(p, labels, ["a", "b"], 1.0)
    assert result["accuracy"] == 0.8
    assert result["accuracy_interval"] == wilson_interval(40, 50)
    assert [(c["recall"], c["recall_low"], c["recall_high"]) for c in result["classes"]] == [
        (1.0, *wilson_interval(40, 40)), (0.0, *wilson_interval(0, 10)),
    ]  # fmt: skip
    assert [(c["precision"], c["precision_low"], c["precision_high"], c["predicted"]) for c in result["classes"]] == [
        (0.8, *wilson_interval(40, 50), 50), (None, None, None, 0),
    ]  # fmt: skip
    assert not {"groups", "effective_images"} & set(result)
    assert result["nll"] == pytest.approx(-0.2 * np.log(1e-12), rel=1e-3)
    assert result["ece"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("spread", "rank", "collapsed"), [(0.051, 2.1, False), (0.049, 50.0, True), (1.0, 1.9, True), (0.01, 1.0, True)]
)
def test_a_small_spread_or_a_small_rank_is_a_collapse(spread: float, rank: float, collapsed: bool) -> None:
    assert has_collapsed({"feature_spread": spread, "effective_rank": rank}) == collapsed


def test_two_images_have_no_rank_that_could_tell_a_collapse() -> None:
    for n in (2, 3):
        apart, equal = (embedding_health(x) for x in (torch.eye(64)[:n], torch.ones(n, 64)))
        assert apart["effective_rank"] < 2.1
        assert not has_collapsed(apart, n)
        assert has_collapsed(equal, n)


def test_the_health_of_one_image_is_finite() -> None:
    assert embedding_health(torch.ones(1, 4)) == {"feature_spread": 0.0, "effective_rank": 1.0}


def macro(result: dict[str, Any]) -> list[float]:
    return [result[name] for name in AVERAGES]


def test_macro_averages_leave_out_classes_without_images_and_predictions() -> None:
    result = classification(np.array([0, 0, 1]), np.array([0, 0, 1]), ["a", "b", "c"])
    assert macro(result) == [1, 1, 1]
    a, _, c = result["classes"]
    assert (a["precision"], a["recall"], a["f1"], a["images"]) == (1, 1, 1, 2)
    ends = dict.fromkeys(f"{metric}{end}" for metric in ("precision", "recall") for end in ("", "_low", "_high"))
    assert c == {"class": "c", **ends, "f1": None, "images": 0, "predicted": 0}


def test_classes_that_are_only_predicted_have_precision_and_f1_of_0_and_no_recall() -> None:
    result = classification(np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1]), CLASSES)
    c = result["classes"][2]
    assert (c["precision_low"], c["precision_high"]) == wilson_interval(0, 1)
    assert (c["precision"], c["recall"], c["f1"], c["images"]) == (0, None, 0, 0)
    assert macro(result) == pytest.approx([2 / 3, 0.75, (2 / 3 + 1 + 0) / 3])


@pytest.mark.parametrize(("true", "guessed"), [((0, 1, 2), (0, 1, 2)), ((1, 2), (0, 1)), ((4,), (0, 4)), ((0,), (3,))])
def test_macro_averages_equal_scikit_learns_over_the_classes_that_occur(
    true: tuple[int, ...], guessed: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    labels, predicted = rng.choice(true, 60), rng.choice(guessed, 60)
    with warnings.catch_warnings(action="ignore"):  # of classes that are only predicted
        theirs = [
            metrics.precision_score(labels, predicted, average="macro", zero_division=0),
            metrics.balanced_accuracy_score(labels, predicted),
            metrics.f1_score(labels, predicted, average="macro", zero_division=0),
        ]
    result = classification(labels, predicted, list("abcde"))
    assert macro(result) == pytest.approx(theirs)
    for k, row in enumerate(result["classes"]):
        assert (row["recall"] is None) == (k not in labels)
        assert (row["precision"] is None) == (row["precision_low"] is None) == (k not in predicted)
        assert (row["f1"] is None) == (k not in labels and k not in predicted)


@pytest.mark.parametrize(("predicted", "recall"), [(0, 1.0), (1, 0.0)])
def test_a_single_test_image_leaves_the_accuracy_open(predicted: int, recall: float) -> None:
    p = np.eye(2)[[predicted]] * 0.8 + 0.1
    result = scored(p, np.array([0]), ["a", "b"], 1.0)
    low, high = result["accuracy_interval"]
    assert high - low == pytest.approx(0.79, abs=0.01)
    assert (result["accuracy"], result["classes"][0]["recall"]) == (recall, recall)


def guesses(n: int, accuracy: float, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return labels, of which the first class has the most, and predictions that are correct with this probability."""
    rng = np.random.default_rng(n)
    labels = rng.choice(classes, n, p=np.arange(classes, 0, -1) / (classes * (classes + 1) / 2))
    return labels, np.where(rng.random(n) < accuracy, labels, rng.integers(0, classes, n))


def test_the_interval_of_macro_f1_is_that_of_images_drawn_within_each_class() -> None:
    """One sample after the other, with scikit-learn's macro F1."""
    labels, predicted = guesses(300, 0.7)
    rng, of_class = np.random.default_rng(1), [np.flatnonzero(labels == k) for k in range(3)]
    drawn = [np.concatenate([rng.choice(rows, len(rows)) for rows in of_class]) for _ in range(600)]
    naive = np.quantile([metrics.f1_score(labels[d], predicted[d], average="macro") for d in drawn], [0.025, 0.975])
    result = classification(labels, predicted, ["a", "b", "c"])
    assert result["f1_macro_interval"] == pytest.approx(naive, abs=0.012)
    assert result["f1_macro_interval"][0] < result["f1_macro"] < result["f1_macro_interval"][1]
    assert classification(labels, predicted, ["a", "b", "c"]) == result


def test_with_groups_the_interval_of_macro_f1_is_that_of_whole_groups() -> None:
    labels, predicted = guesses(60, 0.7)
    groups = np.arange(60).astype(str)
    copies = classification(labels.repeat(9), predicted.repeat(9), ["a", "b", "c"], groups.repeat(9))
    once = classification(labels, predicted, ["a", "b", "c"], groups)
    assert copies["f1_macro_interval"] == pytest.approx(once["f1_macro_interval"])
    rng = np.random.default_rng(1)
    drawn = [rng.choice(60, 60) for _ in range(600)]
    f1 = partial(metrics.f1_score, average="macro", labels=[0, 1, 2], zero_division=0)
    naive = [f1(labels[d], predicted[d]) for d in drawn]
    assert once["f1_macro_interval"] == pytest.approx(np.quantile(naive, [0.025, 0.975]), abs=0.03)
    low, high = f1_interval(labels.repeat(9), predicted.repeat(9), 3) or (0, 1)
    assert once["f1_macro_interval"][1] - once["f1_macro_interval"][0] > 2 * (high - low)
    assert f1_interval(labels, predicted, 3, (np.arange(60) % 9).astype(str)) is None


def test_samples_that_do_not_differ_give_no_interval_of_macro_f1() -> None:
    labels = np.arange(40) % 2
    for predicted in (labels, 1 - labels):
        assert f1_interval(labels, predicted, 2) is None


@pytest.mark.parametrize(("n", "approximate"), [(9, True), (10, False)])
def test_with_fewer_than_ten_images_of_one_class_the_interval_of_macro_f1_is_approximate(
    n: int, approximate: bool
) -> None:
    labels = np.array([0] * 50 + [1] * n)
    result = classification(labels, np.roll(labels, 3), ["a", "b", "without images"])
    assert result["f1_macro_approximate"] == approximate


def test_with_groups_all_intervals_consider_them() -> None:
    """Of 30 groups of six images, each of one class; the last class has too few groups."""
    rng = np.random.default_rng(5)
    of_group = np.array([0] * 14 + [1] * 11 + [2] * 5)
    predicted = np.where(rng.random(30) < 0.7, of_group, rng.integers(0, 3, 30)).repeat(6)
    labels, groups = of_group.repeat(6), np.arange(30).astype(str).repeat(6)
    p = np.eye(3)[predicted] * 0.9 + 0.1 / 3
    result = scored(p, labels, ["a", "b", "c"], 1.0, groups)
    correct = labels == predicted
    assert (result["groups"], result["effective_images"]) == (30, effective_size(correct, groups))
    assert 20 < result["effective_images"] < 35
    assert result["accuracy_interval"] == proportion_interval(correct, groups)
    for k, row in enumerate(result["classes"]):
        for metric, rows in (("recall", labels == k), ("precision", predicted == k)):
            expected = proportion_interval(correct[rows], groups[rows]) or (None, None)
            assert (row[f"{metric}_low"], row[f"{metric}_high"]) == expected
    c = result["classes"][2]
    assert (c["images"], c["recall_low"], c["recall"] is None) == (30, None, False)
    plain = scored(p, labels, ["a", "b", "c"], 1.0)
    different = {k for k in plain if plain[k] != result[k]}
    assert different == {"accuracy_interval", "f1_macro_interval", "classes"}
