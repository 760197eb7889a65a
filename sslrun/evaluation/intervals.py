"""Confidence intervals and paired tests."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEVEL = 0.95
Z = 1.959963984540054  # quantile of the normal distribution for a two-sided interval of this level
MIN_GROUPS = 10  # for an interval that considers groups


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % score interval of a proportion (Wilson 1927); `n` is at least 1.

    Unlike a bootstrap interval, it has a width if all or none of the n are successes.
    """
    from scipy.stats import binomtest

    result = binomtest(successes, n).proportion_ci(LEVEL, method="wilson")
    return float(result.low), float(result.high)


def clopper_pearson_interval(successes: float, n: float) -> tuple[float, float]:
    """Return the 95 % Clopper-Pearson (exact) interval of a proportion (Clopper & Pearson 1934).

    Args:
        successes, n: may be fractions, as of an effective number of images; `n` is positive.
    """
    from scipy.stats import beta

    tail = (1 - LEVEL) / 2
    low = float(beta.ppf(tail, successes, n - successes + 1)) if successes > 0 else 0.0
    high = float(beta.ppf(1 - tail, successes + 1, n - successes)) if successes < n else 1.0
    return low, high


def effective_size(correct: np.ndarray, groups: np.ndarray) -> float | None:
    """Return the number of independent images whose accuracy would be as uncertain as that of grouped ones.

    The variance of the accuracy as a ratio of group sums is divided by that of independent images (the design effect,
    Kish 1965), with a correction for few groups by Student's t. If all images are correct or none is, the groups cannot
    show how alike their images are, and those of one group count as the same.

    Args:
        correct, groups: N booleans and N names; N is at least 1.

    Returns:
        At most N; None for fewer than ten groups.
    """
    from scipy.stats import t

    names, group = np.unique(groups, return_inverse=True)
    n, g, p = len(correct), len(names), float(correct.mean())
    if g < MIN_GROUPS:
        return None
    images = np.bincount(group).astype(np.float64)
    if 0 < p < 1:
        sums = np.bincount(group, weights=correct)
        variance = g / (g - 1) * float(((sums - p * images) ** 2).sum()) / n**2
        effect = max(1.0, variance / (p * (1 - p) / n))
    else:
        effect = float((images**2).sum()) / n
    return min(float(n), n / effect * (Z / float(t.ppf((1 + LEVEL) / 2, g - 1))) ** 2)


def proportion_interval(correct: np.ndarray, groups: np.ndarray | None = None) -> tuple[float, float] | None:
    """Return the 95 % CI of the share of N booleans that are true: an accuracy, recall or precision.

    Returns:
        Wilson's interval; with groups, that of Clopper and Pearson for the `effective_size`. None without values, and
        for fewer than ten groups.
    """
    if not len(correct):
        return None
    if groups is None:
        return wilson_interval(int(correct.sum()), len(correct))
    n = effective_size(correct, groups)
    return None if n is None else clopper_pearson_interval(float(correct.mean()) * n, n)


def validation_excess(val_accuracy: float, validation: int, accuracy: float, images: int) -> dict[str, Any] | None:
    """Compare validation and test accuracy.

    Args:
        validation, images: number of validation and of test images.

    Returns:
        `validation` and `test`, each with `accuracy`, `images` and `interval` (Wilson); None unless the whole interval
        of validation is above that of the test.
    """
    sides = {
        side: {"accuracy": a, "images": n, "interval": wilson_interval(round(a * n), n)}
        for side, a, n in (("validation", val_accuracy, validation), ("test", accuracy, images))
    }
    low, high = sides["validation"]["interval"][0], sides["test"]["interval"][1]  # type: ignore[index]
    return sides if low > high else None


def paired_test(correct: np.ndarray, rival: np.ndarray, groups: np.ndarray | None = None) -> dict[str, Any]:
    """Compare two classifiers on the same N images.

    Args:
        correct, rival: N booleans, whether each classifier's prediction is correct.
        groups: N names of groups of dependent images.

    Returns:
        `difference` of the accuracies and its 95 % `interval`; `only_this` and `only_rival`, the numbers of images that
        only one of the two classifies correctly; `p` of `mcnemar_mid_p` and, with groups, their number `groups`, and
        interval and p of a t test on the sums of the differences of each group: None if all sums are equal, as with one
        group.
    """
    only_this, only_rival = int((correct & ~rival).sum()), int((rival & ~correct).sum())
    differences = correct.astype(np.float64) - rival
    result: dict[str, Any] = {
        "difference": float(differences.mean()), "only_this": only_this, "only_rival": only_rival,
    }  # fmt: skip
    if groups is None:
        interval = paired_interval(only_this, only_rival, len(correct))
        return {**result, "groups": None, "interval": interval, "p": mcnemar_mid_p(only_this, only_rival)}
    sums = np.bincount(np.unique(groups, return_inverse=True)[1], weights=differences)
    if np.ptp(sums) == 0:
        return {**result, "groups": len(sums), "interval": None, "p": None}
    from scipy.stats import ttest_1samp

    test = ttest_1samp(sums, 0)
    ends = test.confidence_interval(LEVEL)
    per_image = len(sums) / len(correct)
    low, high = (float(np.clip(end * per_image, -1, 1)) for end in (ends.low, ends.high))
    return {**result, "groups": len(sums), "interval": (low, high), "p": float(test.pvalue)}


def mcnemar_mid_p(only_this: int, only_rival: int) -> float:
    """Return the two-sided p-value of McNemar's mid-p test (Fagerland, Lydersen & Laake 2013).

    Args:
        only_this, only_rival: numbers of images that only one of two classifiers classifies correctly.
    """
    from scipy.stats import binom

    n, fewer = only_this + only_rival, min(only_this, only_rival)
    observed = float(binom.pmf(fewer, n, 0.5))
    if only_this == only_rival:
        return 1 - observed / 2 if n else 1.0
    return 2 * float(binom.cdf(fewer, n, 0.5)) - observed


def paired_interval(only_this: int, only_rival: int, n: int) -> tuple[float, float]:
    """Return the 95 % CI of the difference of two accuracies on the same n images.

    It is Wald's interval after adding one image to each of the two counts, and two to n (Bonett & Price 2012), so that
    it has a width if the two classifiers agree on every image.

    Args:
        only_this, only_rival: numbers of images that only one of the two classifies correctly.
    """
    a, b = (only_this + 1) / (n + 2), (only_rival + 1) / (n + 2)
    half = Z * math.sqrt((a + b - (a - b) ** 2) / (n + 2))
    return max(-1.0, a - b - half), min(1.0, a - b + half)


MIN_VALUES = 3  # for an interval: that of two values would be their mean +- 9 SD (Student's t)


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval.

    Attributes:
        mean: of the values.
        low, high: bounds of the interval, in the unit of the values; NaN for fewer than three values.
        n: number of values.
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def known(self) -> bool:
        """Whether there are enough values for an interval."""
        return self.n >= MIN_VALUES


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean of independent values and its 95 % CI (Student's t).

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("mean_interval needs at least one value")
    from scipy.stats import ttest_1samp

    mean, n = statistics.fmean(values), len(values)
    if n < MIN_VALUES:
        return Interval(mean, math.nan, math.nan, n)
    if len(set(values)) == 1:
        return Interval(mean, mean, mean, n)
    result = ttest_1samp(values, 0).confidence_interval(LEVEL)
    return Interval(mean, float(result.low), float(result.high), n)
