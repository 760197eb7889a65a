"""Means, paired differences and verdicts against scipy, and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from sslrun.evaluation.intervals import mean_interval, paired
from sslrun.report.study import verdict_text
from sslrun.study.results import labels_needed, verdict


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_intervals_are_scipys(n: int) -> None:
    a, b = np.random.default_rng(n).normal([[0.7], [0.6]], 0.05, (2, n))
    expected = stats.ttest_1samp(a, 0).confidence_interval(0.95)
    result = mean_interval(a.tolist())
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert result.mean == pytest.approx(a.mean())
    difference = paired(dict(enumerate_names(a)), dict(enumerate_names(b)))
    assert difference is not None
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def enumerate_names(values: np.ndarray) -> list[tuple[str, float]]:
    return [(f"subset {i}", float(v)) for i, v in enumerate(values)]


def test_pairs_are_made_by_the_subset_and_not_by_the_order() -> None:
    result = paired({"b": 0.7, "a": 0.5, "only here": 1.0}, {"a": 0.4, "b": 0.6, "only there": 0.0})
    assert result is not None
    assert (result.mean, result.n) == (pytest.approx(0.1), 2)
    assert paired({"a": 1.0}, {"b": 1.0}) is None
    assert verdict_text(verdict(None)) == "nothing to compare with"


@pytest.mark.parametrize("seeds", [3, 5])
def test_an_arm_that_equals_scratch_shows_no_difference_in_95_of_100_trials(seeds: int) -> None:
    rng = np.random.default_rng(0)
    answer = []
    for _ in range(2000):
        subset = rng.normal(0, 0.05, seeds)  # that it is a good or a bad one is common to both
        a, b = 0.7 + subset + rng.normal(0, 0.01, (2, seeds))
        answer.append(verdict_text(verdict(paired(dict(enumerate_names(a)), dict(enumerate_names(b))))))
    none = answer.count("no difference shown") / len(answer)
    assert abs(none - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 2000)
    assert sum(s.startswith("helps") for s in answer) == pytest.approx(
        sum(s.startswith("hurts") for s in answer), abs=45
    )


def test_a_true_gain_is_found_because_it_is_paired() -> None:
    rng = np.random.default_rng(1)
    result = unpaired = 0
    for _ in range(200):
        subset = rng.normal(0, 0.05, 5)
        a, b = 0.75 + subset + rng.normal(0, 0.01, 5), 0.7 + subset + rng.normal(0, 0.01, 5)
        answer = verdict_text(verdict(paired(dict(enumerate_names(a)), dict(enumerate_names(b)))))
        result += answer.startswith("helps by")
        unpaired += stats.ttest_ind(a, b).pvalue < 0.05
    assert result > 195
    assert unpaired < 120


@pytest.mark.parametrize(
    ("values", "kind", "words"),
    [
        ([0.06, 0.062, 0.061], "helps", r"helps by 6\.1 points \(5\.9 to 6\.3\)"),
        ([-0.06, -0.062, -0.061], "hurts", r"hurts by 6\.1 points \(5\.9 to 6\.3\)"),
        ([0.06, -0.06, 0.01], "none", "no difference shown"),
        ([0.0, 0.0, 0.0], "none", "no difference shown"),
        ([0.06], "one subset", "one label subset shows nothing"),
    ],
)
def test_verdicts_in_words(values: list[float], kind: str, words: str) -> None:
    import re

    zero = {str(i): 0.0 for i in range(len(values))}
    result = verdict(paired({str(i): v for i, v in enumerate(values)}, zero))
    assert result.kind == kind
    assert re.match(words, verdict_text(result))


def test_labels_needed_reads_the_curve_both_ways() -> None:
    curve = [(1000, 0.9), (10, 0.5), (100, 0.7)]
    for n, accuracy in curve:
        assert labels_needed(curve, accuracy) == (pytest.approx(n), "=")
    assert labels_needed(curve, 0.6) == (pytest.approx(math.sqrt(10 * 100)), "=")
    assert labels_needed(curve, 0.95) == (1000, ">")
    assert labels_needed(curve, 0.4) == (10, "<")
    assert labels_needed([(10, 0.5), (100, 0.45), (1000, 0.9)], 0.5)[0] == pytest.approx(10)  # a dip is no way back
