import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn import metrics
from sklearn.metrics import classification_report, confusion_matrix

from sslrun.evaluation.intervals import wilson_interval
from sslrun.evaluation.metrics import classification, embedding_health, has_collapsed, scored


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
    p = rng.dirichlet(np.ones(8), 300)
    labels = rng.integers(0, 8, 300)
    result = scored(p, labels, list("abcdefgh"), 3.0)
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


def test_the_effective_rank_does_not_count_the_mean_of_the_features() -> None:
    features = torch.randn(4000, 32, generator=torch.Generator().manual_seed(0)) + 3
    assert embedding_health(features)["effective_rank"] == pytest.approx(32, rel=0.02)
    assert not has_collapsed(embedding_health(features))


CLASSES = ["a", "b", "c", "d"]


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
    for name, values in theirs.items():
        assert result[f"{name}_macro"] == pytest.approx(values.mean())
        assert [row[name] for row in result["classes"]] == pytest.approx(values)
    assert result["recall_macro"] == pytest.approx(metrics.balanced_accuracy_score(labels, predicted))
    assert len({round(result[k], 3) for k in ("accuracy", "precision_macro", "recall_macro", "f1_macro")}) == 4
    assert [row["class"] for row in result["classes"]] == CLASSES
    assert [row["images"] for row in result["classes"]] == np.bincount(labels).tolist()


def test_rows_of_the_confusion_matrix_are_the_true_classes() -> None:
    matrix = classification([0, 0, 0, 1], np.array([0, 1, 1, 2]), CLASSES)["confusion_matrix"]
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


def test_the_top_5_accuracy_is_of_more_than_five_classes_of_which_some_may_be_missing() -> None:
    p = np.eye(7)[[0, 1, 2]] * 0.4 + np.linspace(0.06, 0.0, 7)
    p /= p.sum(1, keepdims=True)
    names = list("abcdefg")
    assert scored(p, np.array([4, 4, 6]), names, 1.0)["top5_accuracy"] == pytest.approx(2 / 3)
    assert scored(p, np.array([5, 6, 6]), names, 1.0)["top5_accuracy"] == 0
    assert "top5_accuracy" not in scored(np.eye(5), np.arange(5), names[:5], 1.0)
    assert "top5_accuracy" in scored(np.eye(6), np.arange(6), names[:6], 1.0)


def test_the_interval_of_the_accuracy_is_wilsons() -> None:
    p, labels = np.eye(2)[np.zeros(50, int)], np.array([0] * 40 + [1] * 10)
    result = scored(p, labels, ["a", "b"], 1.0)
    assert result["accuracy"] == 0.8
    assert result["accuracy_interval"] == wilson_interval(40, 50)
    assert [(c["recall"], c["recall_low"], c["recall_high"]) for c in result["classes"]] == [
        (1.0, *wilson_interval(40, 40)), (0.0, *wilson_interval(0, 10)),
    ]  # fmt: skip
    assert result["nll"] == pytest.approx(-0.2 * np.log(1e-12), rel=1e-3)
    assert result["ece"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("spread", "rank", "collapsed"), [(0.051, 2.1, False), (0.049, 50.0, True), (1.0, 1.9, True), (0.01, 1.0, True)]
)
def test_a_small_spread_or_a_small_rank_is_a_collapse(spread: float, rank: float, collapsed: bool) -> None:
    assert has_collapsed({"feature_spread": spread, "effective_rank": rank}) == collapsed


def test_the_health_of_one_image_is_finite() -> None:
    assert embedding_health(torch.ones(1, 4)) == {"feature_spread": 0.0, "effective_rank": 1.0}


def macro(result: dict[str, Any]) -> list[float]:
    return [result[f"{name}_macro"] for name in ("precision", "recall", "f1")]


def test_macro_averages_leave_out_classes_without_images_and_predictions() -> None:
    result = classification([0, 0, 1], np.array([0, 0, 1]), ["a", "b", "c"])
    assert macro(result) == [1, 1, 1]
    a, _, c = result["classes"]
    assert (a["precision"], a["recall"], a["f1"], a["images"]) == (1, 1, 1, 2)
    assert c == {"class": "c", "precision": None, "recall": None, "recall_low": None, "recall_high": None, "f1": None,
                 "images": 0}  # fmt: skip


def test_classes_that_are_only_predicted_have_precision_and_f1_of_0_and_no_recall() -> None:
    result = classification([0, 0, 1, 1], np.array([0, 2, 1, 1]), CLASSES)
    c = result["classes"][2]
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
        assert (row["f1"] is None) == (row["precision"] is None) == (k not in labels and k not in predicted)


@pytest.mark.parametrize(("predicted", "recall"), [(0, 1.0), (1, 0.0)])
def test_a_single_test_image_leaves_the_accuracy_open(predicted: int, recall: float) -> None:
    p = np.eye(2)[[predicted]] * 0.8 + 0.1
    result = scored(p, np.array([0]), ["a", "b"], 1.0)
    low, high = result["accuracy_interval"]
    assert high - low == pytest.approx(0.79, abs=0.01)
    assert (result["accuracy"], result["classes"][0]["recall"]) == (recall, recall)
