"""The statistics of a comparison: means with intervals, paired differences, what they say, labels saved."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return Interval(mean, math.nan, math.nan, n)
    from scipy.stats import t

    half = float(t.ppf((1 + LEVEL) / 2, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def paired(values: Mapping[str, float], baseline: Mapping[str, float]) -> Interval | None:
    """Return the mean of the differences `values - baseline` on the same label subsets, and its 95 % interval.

    Args:
        values, baseline: accuracy by the name of the label subset; subsets that only one of them has are left out.

    Returns:
        None where they have no subset in common.
    """
    both = [values[k] - baseline[k] for k in values if k in baseline]
    return mean_interval(both) if both else None


def verdict(difference: Interval | None) -> str:
    """Say in words what a paired difference of accuracies, in [-1, 1], shows."""
    if difference is None:
        return "nothing to compare with"
    if difference.n < 2:
        return "one label subset shows nothing: more seeds are needed"
    if not difference.excludes_zero():
        return "no difference shown"
    word = "helps" if difference.mean > 0 else "hurts"
    ends = sorted(abs(100 * x) for x in (difference.low, difference.high))
    return f"{word} by {abs(100 * difference.mean):.1f} points ({ends[0]:.1f} to {ends[1]:.1f})"


def labels_needed(curve: Sequence[tuple[int, float]], accuracy: float) -> tuple[float, str]:
    """Say with how many labels a curve reaches an accuracy: between its points linearly in log(labels).

    Args:
        curve: (labels, accuracy) of the baseline, at least one.

    Returns:
        The number of labels and `"="`, or an end of the curve with `"<"` or `">"` where the accuracy lies beyond it.
    """
    points = sorted(curve)
    if accuracy <= points[0][1]:
        return points[0][0], "=" if accuracy == points[0][1] else "<"
    for (n, a), (m, b) in itertools.pairwise(points):
        if a < accuracy <= b:
            return math.exp(math.log(n) + (accuracy - a) / (b - a) * (math.log(m) - math.log(n))), "="
    return points[-1][0], ">"
