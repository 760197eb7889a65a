"""Gain of pretraining: its difference in test accuracy from scratch, with interval and p-value.

A task is pretrained P times; each network is trained on the same L label subsets as scratch. The differences
`D[p, l] = accuracy of pretraining p - mean accuracy of scratch`, both on subset l, form a matrix `P x L`. Its cells are
not independent: a row has one pretraining, a column one subset and one set of scratch runs. So both are random effects
of a two-way analysis of variance, and the interval holds for another pretraining and other subsets of the same training
images (Searle, Casella & McCulloch 1992, Variance Components). Its degrees of freedom are those of Satterthwaite
(1946). Gains and accuracies are fractions, so 0.01 is one point.

`benchmarks/coverage.py` simulates how often the intervals contain the true gain.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from sslrun.evaluation.intervals import MIN_GROUPS

ASSUMED_SD = 0.015  # of pretraining runs where there is one alone
SHARED = 0.5  # assumed correlation of the subset effects of two tasks, which are compared with the same scratch runs
OUTLIER = 3.0  # ratio of a task's mean square of pretrainings to that of the others
ROUNDING = 1e-20  # a mean square of differences below is one of equal values
SMALLEST_P = 1e-16  # that is searched for

Basis = Literal["pooled", "one task", "one pretraining", "one subset", "one pretraining and subset"]
Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Gain:
    """Difference of a pretrained task from scratch at one label budget, as fractions.

    Attributes:
        gain: mean difference in test accuracy.
        low, high: 95 % CI; None if the runs show no variation from which to estimate it, even if test images do: few
            runs may agree by chance.
        p: two-sided p-value of the same interval: one minus the level at which it ends at 0. None without an interval.
        df: degrees of freedom of Student's t; None without an interval.
        basis: how the variance was estimated. `pooled`: over pretrainings and subsets of all tasks of this budget;
            `one task`: of this task alone; `one pretraining`: over subsets, so it holds for this checkpoint;
            `one subset`: between runs, so it holds for these labels; `one pretraining and subset`: for both.
        pretrainings, subsets: their numbers, P and L.
        fixed_split: the 95 % CI for these test images, where `low` and `high` hold for others like them.
        alone: the 95 % CI of this task alone, if its pretrainings vary far more than those of the tasks in its pool.
        assumed: the 95 % CI for another pretraining, whose SD is assumed to be `ASSUMED_SD`; for one pretraining.
    """

    gain: float
    low: float | None
    high: float | None
    p: float | None
    df: float | None
    basis: Basis
    pretrainings: int
    subsets: int
    fixed_split: Range | None = None
    alone: Range | None = None
    assumed: Range | None = None


class Estimate(NamedTuple):
    """Gains, the variances of these estimates, and their degrees of freedom; arrays of one shape."""

    gain: np.ndarray
    variance: np.ndarray
    df: np.ndarray


def gains_over_scratch(
    differences: Mapping[str, np.ndarray],
    image_variances: Mapping[str, float] | None = None,
) -> dict[str, Gain]:
    """Return the gain of each task at one label budget, estimated from several label subsets.

    Tasks with the same P and L, both at least 2, are pooled: a study has too few pretrainings of one task for a narrow
    interval. Other tasks stand alone, and one whose differences are all equal, as if scratch was chosen everywhere: its
    pretrainings would count in the degrees of freedom without showing how much pretrainings vary. Never put several
    label budgets, or rows that are not in the family, into a pool.

    Args:
        differences: by task, `P x L`, pretrained minus scratch; L is at least 2.
        image_variances: by task, as returned by `image_variance`; without, an interval holds for these test images.

    Raises:
        ValueError: a matrix has another shape or values that are not finite.
    """
    matrices = {task: np.asarray(d, dtype=np.float64) for task, d in differences.items()}
    for task, d in matrices.items():
        if d.ndim != 2 or d.shape[0] < 1 or d.shape[1] < 2 or not np.isfinite(d).all():
            raise ValueError(f"{task}: expected P x L finite differences with L >= 2, found shape {d.shape}")
    out = {}
    for task, d in matrices.items():
        same = [t for t, other in matrices.items() if other.shape == d.shape and _varied(other)]
        pool = same if len(d) > 1 and _varied(d) else [task]
        estimate = _of(estimated(np.stack([matrices[t] for t in pool])), pool.index(task))
        basis: Basis = "one pretraining" if len(d) == 1 else "pooled" if len(pool) > 1 else "one task"
        variance = (image_variances or {}).get(task)
        gain = _gain(estimate, basis, d.shape, variance)
        if len(pool) > 1 and _outlier([matrices[t] for t in pool], pool.index(task)):
            own = _gain(_of(estimated(d[None]), 0), "one task", d.shape, variance)
            gain = replace(gain, alone=_range(own))
        out[task] = gain
    return out


def gain_on_one_subset(pretrained: np.ndarray, scratch: np.ndarray, image_variance: float | None = None) -> Gain:
    """Return the gain on a single label subset, as there is one of 100 % of the labels: Welch's t between runs.

    Args:
        pretrained: accuracies, `P x R`: R runs of each of P pretrainings, of which the means are compared. With P = 1
            these are the runs of the checkpoint.
        scratch: accuracies of S runs.
        image_variance: see `image_variance`.

    Returns:
        A gain without an interval if one side has a single value, or if no runs differ.

    Raises:
        ValueError: an array has another shape or values that are not finite.
    """
    pretrained, scratch = np.asarray(pretrained, dtype=np.float64), np.asarray(scratch, dtype=np.float64)
    if pretrained.ndim != 2 or scratch.ndim != 1 or not (pretrained.size and scratch.size):
        raise ValueError(f"expected P x R and S accuracies, found shapes {pretrained.shape} and {scratch.shape}")
    if not (np.isfinite(pretrained).all() and np.isfinite(scratch).all()):
        raise ValueError("expected finite accuracies")
    basis: Basis = "one subset" if len(pretrained) > 1 else "one pretraining and subset"
    values = pretrained.mean(1) if len(pretrained) > 1 else pretrained[0]
    gain, shape = float(values.mean() - scratch.mean()), (len(pretrained), 1)
    if min(len(values), len(scratch)) < 2:
        return Gain(gain=gain, low=None, high=None, p=None, df=None, basis=basis, pretrainings=shape[0], subsets=1)
    own, rival = (_exact(v.var(ddof=1)) / len(v) for v in (values, scratch))
    variance = own + rival
    df = variance**2 / (own**2 / (len(values) - 1) + rival**2 / (len(scratch) - 1)) if variance > 0 else np.inf
    return _gain(Estimate(np.asarray(gain), variance, np.asarray(df)), basis, shape, image_variance)


def estimated(differences: np.ndarray) -> Estimate:
    """Estimate gains and their variances for another pretraining and other label subsets.

    The mean squares of a task are raised to the mean over the pool and to the mean residual, so that a task whose few
    pretrainings happened to agree has no narrow interval. For a pool no reference is known: it rests on simulation.

    Args:
        differences: `... x K x P x L`, of K tasks in a pool; with P = 1, tasks are never pooled.

    Returns:
        Arrays `... x K`; a variance of 0 has infinitely many degrees of freedom.
    """
    d = np.asarray(differences, dtype=np.float64)
    k, p, n = d.shape[-3:]
    gain = d.mean((-1, -2))
    if p == 1:
        variance = _exact(d[..., 0, :].var(-1, ddof=1)) / n
        return Estimate(gain, variance, np.where(variance > 0, n - 1.0, np.inf))
    a, b, residual = mean_squares(d)
    e = residual.mean(-1, keepdims=True)
    a = np.maximum(np.maximum(a, a.mean(-1, keepdims=True)), e) / (p * n)
    b = np.maximum(np.maximum(b, b.mean(-1, keepdims=True)), e) / (p * n)
    variance = a + b - e / (p * n)
    df_a, df_b = k * (p - 1), k * (n - 1) / (1 + (k - 1) * SHARED**2)
    spread = a**2 / df_a + b**2 / df_b
    df = np.divide(variance**2, spread, out=np.full_like(variance, np.inf), where=variance > 0)
    return Estimate(gain, variance, df)


def mean_squares(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean squares of pretrainings, of label subsets and of the residuals of `... x P x L`, each `...`."""
    d = differences - differences.mean((-1, -2), keepdims=True)
    p, n = d.shape[-2:]
    rows, columns = d.mean(-1, keepdims=True), d.mean(-2, keepdims=True)
    a = n * (rows**2).sum((-1, -2)) / (p - 1)
    b = p * (columns**2).sum((-1, -2)) / (n - 1)
    e = ((d - rows - columns) ** 2).sum((-1, -2)) / ((p - 1) * (n - 1))
    return _exact(a), _exact(b), _exact(e)


def half_widths(estimate: Estimate, known: float = 0.0, alpha: float = 0.05) -> np.ndarray:
    """Return the half-widths of the intervals of level `1 - alpha`.

    Args:
        estimate: arrays.
        known: variance that is not estimated from the runs, so that its part has a normal distribution.
        alpha: one minus the level.
    """
    from scipy.stats import norm, t

    squares = t.ppf(alpha / 2, estimate.df) ** 2 * estimate.variance + norm.ppf(alpha / 2) ** 2 * known
    return np.asarray(np.sqrt(squares))


def p_values(estimate: Estimate) -> np.ndarray:
    """Return the two-sided p-values of gains, without a known variance; the variances must be above 0."""
    from scipy.stats import t

    return np.asarray(2 * t.sf(np.abs(estimate.gain) / np.sqrt(estimate.variance), estimate.df))


def image_variance(differences: np.ndarray, groups: np.ndarray | None = None) -> float | None:
    """Return the variance of a gain that comes from the test images, as a sample of images like them.

    This is the variance between images of the difference in correctness, without the part that comes from the runs,
    which the variance between runs has already.

    Args:
        differences: pretrained minus scratch, `L x N`: for each label subset and image, correct as 1, false as 0,
            each a mean over runs. With L = 1 nothing is subtracted.
        groups: N group numbers from 0 of images that belong together, such as photos of one object.

    Returns:
        None for fewer than ten images or groups, which say too little about others.
    """
    d = np.asarray(differences, dtype=np.float64)
    subsets, images = d.shape
    d = d - d.mean(1, keepdims=True)
    if groups is not None:
        d = np.stack([np.bincount(np.unique(groups, return_inverse=True)[1], row) for row in d])
    units = d.shape[1]
    if units < MIN_GROUPS:
        return None
    mean = d.mean(0)
    variance = (mean**2).sum() / (units - 1)
    if subsets > 1:
        variance -= ((d - mean) ** 2).sum() / ((units - 1) * (subsets - 1) * subsets)
    return max(0.0, float(variance)) * units / images**2


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return the p-values of a family corrected for their number (Holm 1979).

    Args:
        p_values: of all comparisons fixed beforehand. None, of a comparison without an interval, counts as one of them
            and stays None.
    """
    p = np.array([1.0 if value is None else value for value in p_values])
    order = np.argsort(p, kind="stable")
    steps = np.minimum(p[order] * np.arange(len(p), 0, -1), 1.0)
    corrected = np.empty_like(p)
    corrected[order] = np.maximum.accumulate(steps)
    return [None if value is None else float(c) for value, c in zip(p_values, corrected, strict=True)]


def _exact(mean_square: np.ndarray) -> np.ndarray:
    """Return mean squares, 0 where only rounding separates the values."""
    return np.where(mean_square < ROUNDING, 0.0, mean_square)


def _varied(differences: np.ndarray) -> bool:
    return bool(np.ptp(differences) ** 2 > ROUNDING)


def _of(estimate: Estimate, i: int) -> Estimate:
    return Estimate(*(x[i] for x in estimate))


def _outlier(pool: Sequence[np.ndarray], i: int) -> bool:
    squares = [float(mean_squares(d)[0]) for d in pool]
    return bool(squares[i] > OUTLIER * np.mean(squares[:i] + squares[i + 1 :]))


def _range(gain: Gain) -> Range | None:
    return None if gain.low is None or gain.high is None else (gain.low, gain.high)


def _gain(estimate: Estimate, basis: Basis, shape: tuple[int, ...], image_variance: float | None) -> Gain:
    images = image_variance or 0.0
    ends = _interval(estimate, images)
    checkpoint = basis in ("one pretraining", "one pretraining and subset") and ends is not None
    return Gain(
        gain=float(estimate.gain),
        low=ends[0] if ends else None,
        high=ends[1] if ends else None,
        p=_p(estimate, images) if ends else None,
        df=float(estimate.df) if ends else None,
        basis=basis,
        pretrainings=shape[0],
        subsets=shape[1],
        fixed_split=_interval(estimate, 0.0) if image_variance is not None else None,
        assumed=_interval(estimate, images + ASSUMED_SD**2) if checkpoint else None,
    )


def _interval(estimate: Estimate, known: float) -> Range | None:
    """Return the 95 % CI, cut where differences of accuracies end, at -1 and 1; None without variation."""
    if estimate.variance == 0:
        return None
    half = float(half_widths(estimate, known))
    return max(float(estimate.gain) - half, -1.0), min(float(estimate.gain) + half, 1.0)


def _p(estimate: Estimate, known: float) -> float:
    """Return one minus the level of the interval that ends at 0."""
    from scipy.optimize import brentq

    if not known:
        return float(p_values(estimate))

    def excess(log_alpha: float) -> float:
        return float(half_widths(estimate, known, math.exp(log_alpha)) - abs(estimate.gain))

    smallest = math.log(SMALLEST_P)
    return SMALLEST_P if excess(smallest) <= 0 else math.exp(brentq(excess, smallest, 0.0))
