"""Confidence intervals and paired tests against scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from sslrun.evaluation.intervals import bootstrap_interval, mean_interval, paired, paired_test
from sslrun.report.study import verdict_text
from sslrun.study.results import verdict
from tests.helpers import named_values


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_intervals_are_scipys(n: int) -> None:
    a, b = np.random.default_rng(n).normal([[0.7], [0.6]], 0.05, (2, n))
    expected = stats.ttest_1samp(a, 0).confidence_interval(0.95)
    result = mean_interval(a.tolist())
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert result.mean == pytest.approx(a.mean())
    difference = paired(dict(named_values(a)), dict(named_values(b)))
    assert difference is not None
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_pairs_are_made_by_the_subset_and_not_by_the_order() -> None:
    result = paired({"b": 0.7, "a": 0.5, "only here": 1.0}, {"a": 0.4, "b": 0.6, "only there": 0.0})
    assert result is not None
    assert (result.mean, result.n) == (pytest.approx(0.1), 2)
    assert paired({"a": 1.0}, {"b": 1.0}) is None
    assert verdict_text(verdict(None)) == "nothing to compare with"


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
