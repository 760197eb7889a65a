"""Confidence intervals and paired tests against scipy."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.stats import norm

from sslrun.evaluation.intervals import (
    Interval,
    bootstrap_interval,
    mean_interval,
    paired,
    paired_test,
    validation_excess,
    wilson_interval,
)
from sslrun.report.study import verdict_text
from sslrun.study.results import verdict
from tests.helpers import named_values


@pytest.mark.parametrize("n", [3, 5, 30])
def test_intervals_equal_scipys(n: int) -> None:
    a, b = np.random.default_rng(n).normal([[0.7], [0.6]], 0.05, (2, n))
    expected = stats.ttest_1samp(a, 0).confidence_interval(0.95)
    result = mean_interval(a.tolist())
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert result.mean == pytest.approx(a.mean())
    difference = paired(dict(named_values(a)), dict(named_values(b)))
    assert difference is not None
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_values_are_paired_by_subset_not_by_order() -> None:
    result = paired({"b": 0.7, "a": 0.5, "only here": 1.0}, {"a": 0.4, "b": 0.6, "only there": 0.0})
    assert result is not None
    assert (result.mean, result.n) == (pytest.approx(0.1), 2)
    assert paired({"a": 1.0}, {"b": 1.0}) is None
    assert verdict_text(verdict(None)) == "no network trained from scratch to compare with"


def test_the_bootstrap_interval_is_close_to_the_normal_one_and_deterministic() -> None:
    correct = np.random.default_rng(0).random(800) < 0.7
    result = bootstrap_interval(correct)
    assert result is not None
    half = 1.96 * correct.std() / math.sqrt(800)
    assert result == pytest.approx((correct.mean() - half, correct.mean() + half), abs=0.006)
    assert bootstrap_interval(correct) == result
    assert bootstrap_interval(np.ones(50, bool)) == (1.0, 1.0)
    assert bootstrap_interval(np.ones(1, bool)) is None


def test_mcnemars_test_against_the_binomial_sum() -> None:
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


def normal_interval(values: np.ndarray) -> tuple[float, float]:
    half = norm.ppf(0.975) * values.std() / math.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def test_the_bootstrap_interval_covers_95_percent() -> None:
    """An interval of 90 % or 99 % would end 0.005 or 0.01 away."""
    correct = (np.arange(800) < 560).astype(float)
    assert bootstrap_interval(correct) == pytest.approx(normal_interval(correct), abs=0.002)
    scores = np.random.default_rng(1).normal(3, 2, 1000)
    half = norm.ppf(0.975) * scores.std() / math.sqrt(1000)
    assert bootstrap_interval(scores) == pytest.approx(normal_interval(scores), abs=0.06 * half)


def test_the_interval_of_a_paired_difference_covers_95_percent() -> None:
    rng = np.random.default_rng(2)
    correct, rival = rng.random(1000) < 0.8, rng.random(1000) < 0.7
    result = paired_test(correct, rival)["interval"]
    assert result == pytest.approx(normal_interval(correct.astype(float) - rival), abs=0.002)


def test_the_interval_over_runs_widens_with_few_runs() -> None:
    """Student's t gives 4.303 and 1.984 standard errors for 3 and 100 values; the normal distribution 1.960."""
    for n, factor in ((3, 4.3027), (100, 1.9842)):
        values = np.random.default_rng(n).normal(0.7, 0.05, n)
        half = factor * values.std(ddof=1) / math.sqrt(n)
        result = mean_interval(values.tolist())
        assert (result.low, result.high) == pytest.approx((values.mean() - half, values.mean() + half), rel=1e-4)


def test_two_values_have_no_interval() -> None:
    """Student's t would give 282 points for accuracies of 50 and 94.4 %."""
    result = mean_interval([0.5, 0.944])
    assert result.mean == pytest.approx(0.722)
    assert math.isnan(result.low)
    assert math.isnan(result.high)
    assert not result.excludes_zero()
    assert not result.known


@pytest.mark.parametrize(
    ("low", "high", "excluded"), [(0.1, 0.3, True), (-0.3, -0.1, True), (-0.1, 0.3, False), (0.0, 0.3, False)]
)
def test_an_interval_excludes_zero_if_it_is_on_one_side(low: float, high: float, excluded: bool) -> None:
    interval = Interval(0.1, low, high, 3)
    assert interval.excludes_zero() == excluded
    assert interval.known
    assert not Interval(0.1, low, high, 2).known


def test_equal_values_have_an_interval_of_width_zero_and_no_values_are_an_error() -> None:
    assert mean_interval([0.7] * 4) == Interval(0.7, 0.7, 0.7, 4)
    with pytest.raises(ValueError, match="at least one value"):
        mean_interval([])


def test_the_interval_of_a_difference_has_its_sign_and_counts_are_of_disagreements() -> None:
    this, rival = np.array([True] * 8 + [False] * 2), np.array([True] * 3 + [False] * 6 + [True])
    result = paired_test(this, rival)
    assert (result["only_this"], result["only_rival"], result["difference"]) == (5, 1, pytest.approx(0.4))
    assert result["p"] == pytest.approx(2 * (1 + 6) / 2**6)
    assert -0.2 <= result["interval"][0] < 0.4 < result["interval"][1] <= 1


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (43, 43), (28, 100), (7, 9)])
def test_wilsons_interval_is_that_of_its_formula(correct: int, n: int) -> None:
    z, p = norm.ppf(0.975), correct / n
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert wilson_interval(correct, n) == pytest.approx((center - half, center + half), abs=1e-9)


def test_validation_exceeds_the_test_only_outside_both_intervals() -> None:
    assert validation_excess(0.47, 200, 0.28, 200) == {  # 40.2 to 53.9, and 22.2 to 34.6
        "validation": {"accuracy": 0.47, "images": 200, "interval": wilson_interval(94, 200)},
        "test": {"accuracy": 0.28, "images": 200, "interval": wilson_interval(56, 200)},
    }
    assert validation_excess(0.469, 128, 0.279, 43) is None  # 38.4 to 55.5, and 16.7 to 42.7
    assert validation_excess(0.28, 200, 0.47, 200) is None


@pytest.mark.parametrize(("k", "n"), [(43, 43), (0, 43), (421, 755), (1, 1), (0, 1), (3, 7)])
def test_the_wilson_interval_has_the_ends_at_which_the_score_test_rejects(k: int, n: int) -> None:
    """At an end p, the observed proportion is 1.96 standard deviations of a binomial proportion away from p."""
    low, high = wilson_interval(k, n)
    assert 0 <= low <= k / n <= high <= 1
    assert low < high
    for end in (low, high):
        if 0 < end < 1:
            assert abs(k / n - end) == pytest.approx(norm.ppf(0.975) * math.sqrt(end * (1 - end) / n))
    assert (low == 0, high == 1) == (k == 0, k == n)


@pytest.mark.parametrize(("n", "p"), [(30, 0.9), (100, 0.5), (100, 0.97), (755, 0.558)])
def test_the_wilson_interval_covers_about_95_percent(n: int, p: float) -> None:
    covered = [low <= p <= high for low, high in (wilson_interval(k, n) for k in range(n + 1))]
    assert 0.92 < stats.binom.pmf(np.arange(n + 1), n, p)[covered].sum() < 0.985
