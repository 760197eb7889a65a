"""Confidence intervals and paired tests."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEVEL = 0.95
SAMPLES = 2000  # of the bootstrap


def bootstrap_interval(values: np.ndarray) -> tuple[float, float] | None:
    """Return the 95 % bootstrap interval of a mean (2,000 samples, percentiles), or None for fewer than two values."""
    from scipy.stats import bootstrap

    if len(values) < 2:
        return None
    result = bootstrap(
        (values.astype(np.float64),), np.mean, n_resamples=SAMPLES, method="percentile", batch=50, rng=0
    ).confidence_interval
    return float(result.low), float(result.high)


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % score interval of a proportion (Wilson 1927); `n` is at least 1.

    Unlike a bootstrap interval, it has a width if all or none of the n are successes.
    """
    from scipy.stats import binomtest

    result = binomtest(successes, n).proportion_ci(LEVEL, method="wilson")
    return float(result.low), float(result.high)


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


def paired_test(correct: np.ndarray, rival: np.ndarray) -> dict[str, Any]:
    """Compare two classifiers on the same N images.

    Args:
        correct, rival: N booleans, whether each classifier's prediction is correct.

    Returns:
        `difference` of the accuracies and its 95 % bootstrap `interval` over images; `only_this` and `only_rival`, the
        numbers of images that only one of the two classifies correctly; `p`, McNemar's exact test of these numbers.
    """
    from scipy.stats import binomtest

    only_this, only_rival = int((correct & ~rival).sum()), int((rival & ~correct).sum())
    differences = correct.astype(np.float64) - rival
    return {
        "difference": float(differences.mean()),
        "interval": bootstrap_interval(differences),
        "only_this": only_this,
        "only_rival": only_rival,
        "p": float(binomtest(only_this, only_this + only_rival).pvalue) if only_this + only_rival else 1.0,
    }


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

    def excludes_zero(self) -> bool:
        """Return whether the whole interval is on one side of 0."""
        return self.low > 0 or self.high < 0


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


def paired(values: Mapping[str, float], baseline: Mapping[str, float]) -> Interval | None:
    """Return the mean of the paired differences `values - baseline` and its 95 % CI.

    Args:
        values, baseline: accuracy by name of the label subset; subsets that only one of them has are ignored.

    Returns:
        None if they have no subset in common.
    """
    both = [values[k] - baseline[k] for k in values if k in baseline]
    return mean_interval(both) if both else None
