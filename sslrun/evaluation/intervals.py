"""Confidence intervals and paired tests."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

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


def paired_test(right: np.ndarray, rival: np.ndarray) -> dict[str, Any]:
    """Compare two classifiers on the same N pictures, of which each got some right.

    Returns:
        `difference` of the accuracies and its 95 % bootstrap `interval`, over pictures; `only_this` and `only_rival`,
        how many one of the two alone got right; `p`, of McNemar's exact test that these are equally likely.
    """
    from scipy.stats import binomtest

    only, only_rival = int((right & ~rival).sum()), int((rival & ~right).sum())
    differences = right.astype(np.float64) - rival
    return {
        "difference": float(differences.mean()),
        "interval": bootstrap_interval(differences),
        "only_this": only,
        "only_rival": only_rival,
        "p": float(binomtest(only, only + only_rival).pvalue) if only + only_rival else 1.0,
    }


LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval.

    Attributes:
        mean: of the values.
        low, high: ends of the interval, in the unit of the values; both NaN for a single value.
        n: how many values.
    """

    mean: float
    low: float
    high: float
    n: int

    def excludes_zero(self) -> bool:
        """Tell whether the whole interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean of independent values and its 95 % interval by Student's t.

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("no value to take the mean of")
    from scipy.stats import ttest_1samp

    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return Interval(mean, math.nan, math.nan, n)
    if len(set(values)) == 1:
        return Interval(mean, mean, mean, n)
    result = ttest_1samp(values, 0).confidence_interval(LEVEL)
    return Interval(mean, float(result.low), float(result.high), n)


def paired(values: Mapping[str, float], baseline: Mapping[str, float]) -> Interval | None:
    """Return the mean of the differences `values - baseline` on the same label subsets, and its 95 % interval.

    Args:
        values, baseline: accuracy by the name of the label subset; subsets that only one of them has are left out.

    Returns:
        None where they have no subset in common.
    """
    both = [values[k] - baseline[k] for k in values if k in baseline]
    return mean_interval(both) if both else None
