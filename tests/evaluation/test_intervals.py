"""Confidence intervals and paired tests against scipy."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.stats import norm

from sslrun.evaluation.intervals import (
    Interval,
    clopper_pearson_interval,
    effective_size,
    mcnemar_mid_p,
    mean_interval,
    paired_interval,
    paired_test,
    proportion_interval,
    validation_excess,
    wilson_interval,
)


@pytest.mark.parametrize("n", [3, 5, 30])
def test_intervals_equal_scipys(n: int) -> None:
    a = np.random.default_rng(n).normal(0.7, 0.05, n)
    expected = stats.ttest_1samp(a, 0).confidence_interval(0.95)
    result = mean_interval(a.tolist())
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert result.mean == pytest.approx(a.mean())


def test_mcnemars_mid_p_test_against_the_binomial_sum() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(200) < 0.8, rng.random(200) < 0.7
    result = paired_test(a, b)
    only, only_rival = int(sum(a & ~b)), int(sum(b & ~a))
    n, most = only + only_rival, max(only, only_rival)
    tail = sum(math.comb(n, k) for k in range(most + 1, n + 1)) / 2**n
    assert (result["only_this"], result["only_rival"]) == (only, only_rival)
    assert result["p"] == pytest.approx(2 * (tail + math.comb(n, most) / 2**n / 2))
    assert result["difference"] == pytest.approx(a.mean() - b.mean())
    assert result["interval"][0] < result["difference"] < result["interval"][1]
    assert paired_test(a, a)["p"] == 1.0
    assert paired_test(b, a)["difference"] == pytest.approx(-result["difference"])
    assert paired_test(b, a)["p"] == result["p"]


def test_mcnemars_mid_p_test_of_published_data() -> None:
    """Airway hyper-responsiveness before and after stem cell transplantation (Fagerland et al. 2013, table 1)."""
    assert mcnemar_mid_p(1, 7) == pytest.approx(0.0391, abs=5e-5)
    assert mcnemar_mid_p(7, 1) == mcnemar_mid_p(1, 7)
    assert mcnemar_mid_p(3, 3) == pytest.approx(1 - 0.5 * math.comb(6, 3) / 2**6)  # if both numbers are equal
    assert mcnemar_mid_p(0, 0) == 1


@pytest.mark.parametrize("n", [10, 40])
def test_the_mid_p_test_keeps_its_level(n: int) -> None:
    """Whatever the share of disagreements, summed over all outcomes."""
    for share in (0.05, 0.2, 0.6):
        wrong = sum(
            stats.binom.pmf(m, n, share) * stats.binom.pmf(k, m, 0.5)
            for m in range(n + 1)
            for k in range(m + 1)
            if mcnemar_mid_p(k, m - k) < 0.05
        )
        assert wrong < 0.0505


def normal_interval(values: np.ndarray) -> tuple[float, float]:
    half = norm.ppf(0.975) * values.std() / math.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


@pytest.mark.parametrize("p", [(0.01, 0.01), (0.02, 0.0), (0.1, 0.05), (0.2, 0.05)])
@pytest.mark.parametrize("n", [20, 100, 1000])
def test_the_interval_of_a_paired_difference_covers_95_percent(n: int, p: tuple[float, float]) -> None:
    """Drawn 2,000 times."""
    drawn = np.random.default_rng(n).multinomial(n, [*p, 1 - sum(p)], 2000)
    ends = np.array([paired_interval(int(a), int(b), n) for a, b, _ in drawn])
    covered = ((ends[:, 0] <= p[0] - p[1]) & (p[0] - p[1] <= ends[:, 1])).mean()
    assert covered > 0.95 - 2.5 * math.sqrt(0.05 * 0.95 / 2000)


def test_the_interval_of_a_paired_difference_is_that_of_its_formula() -> None:
    """Bonett & Price 2012, for (1, 7) of 21 pairs; near that of the normal distribution for many images."""
    a, b = 2 / 23, 8 / 23
    half = norm.ppf(0.975) * math.sqrt((a + b - (a - b) ** 2) / 23)
    assert paired_interval(1, 7, 21) == pytest.approx((a - b - half, a - b + half))
    rng = np.random.default_rng(2)
    correct, rival = rng.random(1000) < 0.8, rng.random(1000) < 0.7
    result = paired_test(correct, rival)["interval"]
    assert result == pytest.approx(normal_interval(correct.astype(float) - rival), abs=0.002)
    assert paired_interval(3, 0, 3)[1] == 1


def test_two_classifiers_that_agree_may_still_differ() -> None:
    low, high = paired_interval(0, 0, 43)
    assert (low, high) == (-high, pytest.approx(0.0616, abs=1e-4))
    wider, narrower = paired_interval(0, 0, 10), paired_interval(0, 0, 1000)
    assert wider[1] > high > narrower[1] > 0


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
    assert not result.known
    assert mean_interval([0.5, 0.944, 0.7]).known


def test_equal_values_have_an_interval_of_width_zero_and_no_values_are_an_error() -> None:
    assert mean_interval([0.7] * 4) == Interval(0.7, 0.7, 0.7, 4)
    with pytest.raises(ValueError, match="at least one value"):
        mean_interval([])


def test_the_interval_of_a_difference_has_its_sign_and_counts_are_of_disagreements() -> None:
    this, rival = np.array([True] * 8 + [False] * 2), np.array([True] * 3 + [False] * 6 + [True])
    result = paired_test(this, rival)
    assert (result["only_this"], result["only_rival"], result["difference"]) == (5, 1, pytest.approx(0.4))
    assert result["p"] == pytest.approx(2 * (1 + 6 / 2) / 2**6)
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


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (43, 43), (28, 100), (7, 9), (0, 1)])
def test_clopper_and_pearsons_interval_is_scipys(correct: int, n: int) -> None:
    expected = stats.binomtest(correct, n).proportion_ci(0.95, "exact")
    assert clopper_pearson_interval(correct, n) == pytest.approx((expected.low, expected.high), abs=1e-9)
    low, high = clopper_pearson_interval(correct + 0.5, n + 0.5)  # between those of whole numbers
    assert clopper_pearson_interval(correct, n)[0] <= low < high <= 1


def of_groups(sizes: list[int], correct: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return whether each image is classified correctly, and its group."""
    rows = np.concatenate([np.arange(m) < k for m, k in zip(sizes, correct, strict=True)])
    return rows, np.repeat([f"group {i}" for i in range(len(sizes))], sizes)


def test_the_effective_size_is_that_of_its_formula() -> None:
    """With the ratio estimator's variance written out."""
    sizes, right = [4, 6, 8, 2, 10, 5, 5, 7, 3, 9, 6], [4, 0, 8, 2, 9, 5, 0, 7, 1, 9, 6]
    correct, groups = of_groups(sizes, right)
    n, p, g = sum(sizes), sum(right) / sum(sizes), len(sizes)
    variance = g / (g - 1) * sum((k - p * m) ** 2 for k, m in zip(right, sizes, strict=True)) / n**2
    effect = variance / (p * (1 - p) / n)
    expected = n / effect * (norm.ppf(0.975) / stats.t.ppf(0.975, g - 1)) ** 2
    assert effect > 3
    assert effective_size(correct, groups) == pytest.approx(expected)
    assert proportion_interval(correct, groups) == pytest.approx(clopper_pearson_interval(p * expected, expected))
    order = np.random.default_rng(0).permutation(n)
    assert effective_size(correct[order], groups[order]) == pytest.approx(expected)


def test_the_effective_size_is_the_number_of_groups_if_their_images_are_alike() -> None:
    """Up to the correction for few groups; with groups of one image, that of the images."""
    few = (norm.ppf(0.975) / stats.t.ppf(0.975, 199)) ** 2
    alike, groups = of_groups([5] * 200, [5] * 150 + [0] * 50)
    assert effective_size(alike, groups) == pytest.approx(200 * few, rel=0.01)
    assert effective_size(*of_groups([1] * 200, [1] * 150 + [0] * 50)) == pytest.approx(200 * few, rel=0.01)
    for each in (0, 5):  # where nothing shows how alike they are
        assert effective_size(*of_groups([5] * 200, [each] * 200)) == pytest.approx(200 * few)
    assert effective_size(*of_groups([5] * 200, [4, 3, 4, 5] * 50)) == pytest.approx(1000 * few)  # never above n


@pytest.mark.parametrize(("groups", "known"), [(9, False), (10, True)])
def test_an_interval_with_groups_needs_ten(groups: int, known: bool) -> None:
    correct, names = of_groups([4] * groups, [3] * groups)
    assert (effective_size(correct, names) is not None) == (proportion_interval(correct, names) is not None) == known


def test_without_groups_the_interval_is_wilsons_and_without_images_there_is_none() -> None:
    assert proportion_interval(np.arange(50) < 40) == wilson_interval(40, 50)
    assert proportion_interval(np.zeros(0, bool)) is None
    assert proportion_interval(np.zeros(0, bool), np.zeros(0, str)) is None


@pytest.mark.parametrize(("p", "alike"), [(0.7, 0.1), (0.7, 0.5), (0.85, 0.5), (0.7, 0.9)])
def test_the_interval_with_groups_covers_95_percent(p: float, alike: float) -> None:
    """Accuracies of 30 groups of 1 to 20 images are drawn from a beta distribution; Wilson's covers far less."""
    rng, scale = np.random.default_rng(7), (1 - alike) / alike
    covered = naive = 0
    for _ in range(400):
        sizes = rng.integers(1, 21, 30)
        right = rng.binomial(sizes, rng.beta(p * scale, (1 - p) * scale, 30))
        correct, groups = of_groups(sizes.tolist(), right.tolist())
        low, high = proportion_interval(correct, groups) or (math.nan, math.nan)
        covered += low <= p <= high
        low, high = wilson_interval(int(correct.sum()), len(correct))
        naive += low <= p <= high
    assert covered >= 0.92 * 400
    assert naive < (0.9 if alike < 0.2 else 0.75) * 400


def test_the_comparison_by_groups_is_scipys_t_test_on_their_sums() -> None:
    rng = np.random.default_rng(3)
    groups = rng.integers(0, 25, 300).astype(str)
    correct, rival = rng.random(300) < 0.8, rng.random(300) < 0.7
    sums = [int(correct[groups == g].sum()) - int(rival[groups == g].sum()) for g in sorted(set(groups))]
    result = paired_test(correct, rival, groups)
    expected = stats.ttest_1samp(sums, 0)
    assert (result["groups"], result["p"]) == (25, pytest.approx(expected.pvalue))
    ends = expected.confidence_interval(0.95)
    assert result["interval"] == pytest.approx((ends.low * 25 / 300, ends.high * 25 / 300))
    assert np.mean(result["interval"]) == pytest.approx(result["difference"])
    independent = paired_test(correct, rival)
    assert {k: result[k] for k in ("difference", "only_this", "only_rival")} == {
        k: independent[k] for k in ("difference", "only_this", "only_rival")
    }
    assert independent["groups"] is None


def test_copies_of_an_image_are_no_evidence() -> None:
    """Of 12 images, 7 are classified correctly by one classifier alone, 1 by the other; each has 20 copies."""
    this, rival = np.array([1] * 7 + [0] + [1] * 4, bool), np.array([0] * 7 + [1] + [1] * 4, bool)
    names = np.arange(12).astype(str)
    once, copied = (paired_test(this.repeat(k), rival.repeat(k), names.repeat(k)) for k in (1, 20))
    assert copied["p"] == pytest.approx(once["p"])
    assert copied["interval"] == pytest.approx(once["interval"])
    assert paired_test(this.repeat(20), rival.repeat(20))["p"] < 1e-9 < 0.01 < once["p"]


def test_equal_sums_of_groups_give_no_test() -> None:
    correct, rival = np.ones(8, bool), np.zeros(8, bool)
    for groups in (["a"] * 8, ["a"] * 4 + ["b"] * 4):
        result = paired_test(correct, rival, np.array(groups))
        assert (result["p"], result["interval"], result["difference"]) == (None, None, 1)
