import math

import numpy as np
import pytest
import torch
from sklearn.metrics import classification_report, confusion_matrix

from sslrun.evaluation.intervals import bootstrap_interval, paired_test
from sslrun.evaluation.metrics import classification, embedding_health, has_collapsed, scored
from sslrun.models.classifier import knn_probabilities


def test_knn_against_a_naive_loop() -> None:
    rng = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(50, 4, generator=rng), torch.randn(7, 4, generator=rng)
    labels = torch.randint(3, (50,), generator=rng)
    p = knn_probabilities(queries, bank, labels, 3, k=5)
    for q in range(7):
        s = [float(torch.cosine_similarity(queries[q], b, 0)) for b in bank]
        nearest = sorted(range(50), key=lambda i: -s[i])[:5]
        votes = [sum(math.exp(s[i] / 0.07) for i in nearest if labels[i] == c) for c in range(3)]
        assert p[q].tolist() == pytest.approx([v / sum(votes) for v in votes], abs=1e-4)


def test_knn_with_fewer_pictures_than_neighbours_and_huge_features() -> None:
    bank = torch.eye(3) * 1e6
    assert knn_probabilities(bank, bank, torch.arange(3), 3).argmax(1).tolist() == [0, 1, 2]


def test_case_61_the_alarm_fires_on_a_collapsed_embedding_and_not_on_a_healthy_one() -> None:
    rng = torch.Generator().manual_seed(0)
    healthy = torch.randn(500, 64, generator=rng)
    point = torch.ones(500, 64) + 1e-4 * healthy
    line = torch.randn(500, 1, generator=rng) * torch.ones(1, 64) + 1e-4 * healthy
    assert not has_collapsed(embedding_health(healthy))
    assert has_collapsed(embedding_health(point))
    assert has_collapsed(embedding_health(line))
    assert has_collapsed(embedding_health(torch.ones(500, 64)))


def test_health_of_an_even_spread_is_one_and_of_a_plane_its_dimension() -> None:
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


def test_the_bootstrap_interval_is_about_the_normal_one_and_always_the_same() -> None:
    right = np.random.default_rng(0).random(800) < 0.7
    result = bootstrap_interval(right)
    assert result is not None
    half = 1.96 * right.std() / math.sqrt(800)
    assert result == pytest.approx((right.mean() - half, right.mean() + half), abs=0.006)
    assert bootstrap_interval(right) == result
    assert bootstrap_interval(np.ones(50, bool)) == (1.0, 1.0)
    assert bootstrap_interval(np.ones(1, bool)) is None


def test_mcnemars_test_against_its_sum() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(200) < 0.8, rng.random(200) < 0.7
    result = paired_test(a, b)
    only, only_rival = int(sum(a & ~b)), int(sum(b & ~a))
    n, most = only + only_rival, max(only, only_rival)
    tail = sum(math.comb(n, k) for k in range(most, n + 1)) / 2**n
    assert (result["only_this"], result["only_rival"]) == (only, only_rival)
    assert result["p"] == pytest.approx(min(1, 2 * tail))
    assert result["difference"] == pytest.approx(a.mean() - b.mean())
    assert result["interval"][0] < result["difference"] < result["interval"][1]
    assert paired_test(a, a)["p"] == 1.0
    assert paired_test(b, a)["difference"] == pytest.approx(-result["difference"])


def test_scores_have_top_5_and_both_calibrations() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(8), 300)
    labels = rng.integers(0, 8, 300)
    result = scored(p, labels, list("abcdefgh"), 3.0)
    ranked = np.argsort(-p, 1)[:, :5]
    assert result["top5_accuracy"] == pytest.approx(np.mean([labels[i] in ranked[i] for i in range(300)]))
    assert result["nll_calibrated"] < result["nll"]  # labels are drawn blindly: flatter is better
    assert sum(r["images"] for r in result["reliability_calibrated"]) == 300
    assert "top5_accuracy" not in scored(p[:, :4] / p[:, :4].sum(1, keepdims=True), labels % 4, list("abcd"), 1.0)
