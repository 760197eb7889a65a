"""Gains of pretraining: naive loops, scipy, properties, and simulated studies with a known gain."""

import dataclasses
import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from sslrun.study.gains import (
    ASSUMED_SD,
    Estimate,
    Gain,
    estimated,
    gain_on_one_subset,
    gains_over_scratch,
    half_widths,
    holm,
    image_variance,
    p_values,
)

SHAPES = [(2, 2), (3, 5), (2, 5), (5, 3)]


def differences(seed: int, pretrainings: int, subsets: int, sd: float = 0.02) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.03, sd, (pretrainings, subsets))


def ends(gain: Gain) -> tuple[float, float]:
    assert gain.low is not None
    assert gain.high is not None
    return gain.low, gain.high


# Formulas, in loops


def squares_in_loops(d: list[list[float]]) -> tuple[float, float, float]:
    p, n = len(d), len(d[0])
    g = sum(sum(row) for row in d) / (p * n)
    rows = [sum(row) / n for row in d]
    columns = [sum(d[i][j] for i in range(p)) / p for j in range(n)]
    a = n * sum((r - g) ** 2 for r in rows) / (p - 1)
    b = p * sum((c - g) ** 2 for c in columns) / (n - 1)
    e = sum((d[i][j] - rows[i] - columns[j] + g) ** 2 for i in range(p) for j in range(n)) / ((p - 1) * (n - 1))
    return a, b, e


def pooled_in_loops(tasks: list[np.ndarray], task: int) -> tuple[float, float, float]:
    """Return gain, half-width and degrees of freedom."""
    k, (p, n) = len(tasks), tasks[0].shape
    squares = [squares_in_loops(d.tolist()) for d in tasks]
    e = sum(s[2] for s in squares) / k
    a = max(squares[task][0], sum(s[0] for s in squares) / k, e)
    b = max(squares[task][1], sum(s[1] for s in squares) / k, e)
    variance = (a + b - e) / (p * n)
    df_a, df_b = k * (p - 1), (n - 1) * k / (1 + (k - 1) * 0.25)
    df = variance**2 / ((a / (p * n)) ** 2 / df_a + (b / (p * n)) ** 2 / df_b)
    return sum(map(sum, tasks[task].tolist())) / (p * n), stats.t.ppf(0.975, df) * math.sqrt(variance), df


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize(("pretrainings", "subsets"), SHAPES)
def test_gains_equal_the_formulas_in_loops(pretrainings: int, subsets: int, tasks: int) -> None:
    d = [differences(i, pretrainings, subsets, 0.002 * (1 + i)) for i in range(tasks)]
    results = gains_over_scratch({str(i): x for i, x in enumerate(d)})
    for i, result in enumerate(results.values()):
        gain, half, df = pooled_in_loops(d, i)
        assert result.basis == ("pooled" if tasks > 1 else "one task")
        assert (result.gain, result.df) == pytest.approx((gain, df))
        assert ends(result) == pytest.approx((max(-1, gain - half), min(1, gain + half)))
        assert result.p == pytest.approx(2 * stats.t.sf(abs(gain) / (half / stats.t.ppf(0.975, df)), df))


# References


@pytest.mark.parametrize(("pretrainings", "subsets"), [(3, 5), (5, 3), (2, 8)])
def test_without_residual_it_is_welchs_test(pretrainings: int, subsets: int) -> None:
    """The variance of a sum of two means is that of their difference, so Satterthwaite's df are Welch's."""
    rng = np.random.default_rng(0)
    of_pretraining, of_subset = rng.normal(0.03, 0.02, pretrainings), rng.normal(0, 0.01, subsets)
    (result,) = gains_over_scratch({"simclr": of_pretraining[:, None] + of_subset}).values()
    expected = stats.ttest_ind(of_pretraining, -of_subset, equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert (result.p, result.df) == pytest.approx((expected.pvalue, expected.df))
    assert ends(result) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize("subsets", [2, 5])
def test_one_pretraining_is_a_paired_t_test_over_subsets(subsets: int) -> None:
    d = differences(0, 1, subsets)
    (result,) = gains_over_scratch({"simclr": d}).values()
    expected = stats.ttest_1samp(d[0], 0)
    interval = expected.confidence_interval(0.95)
    assert (result.basis, result.p, result.df) == ("one pretraining", pytest.approx(expected.pvalue), subsets - 1)
    assert ends(result) == pytest.approx((interval.low, interval.high))
    assert result.assumed is not None
    half = math.hypot((interval.high - interval.low) / 2, stats.norm.ppf(0.975) * 0.015)
    assert result.assumed == pytest.approx((result.gain - half, result.gain + half))


@pytest.mark.parametrize(("runs", "basis"), [((4, 1), "one subset"), ((4, 2), "one subset"),
                                             ((1, 4), "one pretraining and subset")])  # fmt: skip
def test_one_subset_is_welchs_test_between_runs(runs: tuple[int, int], basis: str) -> None:
    rng = np.random.default_rng(0)
    pretrained, scratch = rng.normal(0.8, 0.01, runs), rng.normal(0.75, 0.03, 3)
    result = gain_on_one_subset(pretrained, scratch)
    values = pretrained.mean(1) if runs[0] > 1 else pretrained[0]
    expected = stats.ttest_ind(values, scratch, equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert (result.basis, result.pretrainings, result.subsets) == (basis, runs[0], 1)
    assert (result.p, result.df) == pytest.approx((expected.pvalue, expected.df))
    assert ends(result) == pytest.approx((interval.low, interval.high))
    assert (result.assumed is None) == (runs[0] > 1)


def test_holm_equals_an_example_by_hand() -> None:
    # 4 x 0.005, 3 x 0.01, 2 x 0.03, then 1 x 0.04, which is not below the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4, 0.5, 0.02]) == pytest.approx([0.8, 0.8, 0.06])
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


def test_a_comparison_without_interval_counts_in_its_family() -> None:
    assert holm([None, 0.01, None]) == [None, pytest.approx(0.03), None]


def test_holm_keeps_the_order_and_lies_between_p_and_bonferroni() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 5, 15):
        p = rng.random(size) ** 4
        corrected = np.array(holm(p.tolist()), dtype=float)
        assert (corrected >= p).all()
        assert (corrected <= np.minimum(1, size * p)).all()
        assert (np.diff(corrected[np.argsort(p)]) >= 0).all()
        order = rng.permutation(size)
        assert holm(p[order].tolist()) == corrected[order].tolist()


# Properties


def test_a_constant_added_to_scratch_moves_the_gain_alone() -> None:
    d = {"rotation": differences(0, 3, 5), "simclr": differences(1, 3, 5)}
    before, after = gains_over_scratch(d), gains_over_scratch({k: x - 0.01 for k, x in d.items()})
    for a, b in zip(before.values(), after.values(), strict=True):
        assert (b.gain, *ends(b)) == pytest.approx((a.gain - 0.01, *(x - 0.01 for x in ends(a))))
        assert b.df == pytest.approx(a.df)


def test_the_sign_of_all_differences_is_that_of_the_gain() -> None:
    d = differences(0, 3, 5)
    (a,), (b,) = gains_over_scratch({"x": d}).values(), gains_over_scratch({"x": -d}).values()
    assert (b.gain, *ends(b)) == pytest.approx((-a.gain, *(-x for x in reversed(ends(a)))))
    assert b.p == pytest.approx(a.p)


def test_the_order_of_pretrainings_subsets_and_tasks_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    d = {"rotation": differences(0, 3, 5), "simclr": differences(1, 3, 5, 0.05), "jigsaw": differences(2, 3, 5)}
    images = {"simclr": 1e-4}
    permuted = {k: d[k][rng.permutation(3)][:, rng.permutation(5)] for k in reversed(d)}
    before, after = gains_over_scratch(d, images), gains_over_scratch(permuted, images)
    for task, gain in before.items():
        a, b = (dataclasses.astuple(x) for x in (gain, after[task]))
        for x, y in zip(a, b, strict=True):
            assert x == y if x is None or isinstance(x, str) else x == pytest.approx(y)


def test_tasks_with_other_numbers_of_pretrainings_are_not_pooled() -> None:
    d = {"rotation": differences(0, 3, 5), "simclr": differences(1, 3, 5), "jigsaw": differences(2, 2, 5),
         "imagenet": differences(3, 1, 5), "other": differences(4, 1, 5)}  # fmt: skip
    results = gains_over_scratch(d)
    assert [g.basis for g in results.values()] == ["pooled", "pooled", "one task", *["one pretraining"] * 2]
    for task in ("jigsaw", "imagenet", "other"):
        assert results[task] == gains_over_scratch({task: d[task]})[task]
    assert results["rotation"] == gains_over_scratch({k: d[k] for k in ("rotation", "simclr")})["rotation"]


@pytest.mark.parametrize(("factor", "printed"), [(1.7, False), (1.8, True)])  # squared: 2.9 and 3.2
def test_a_task_with_far_more_variable_pretrainings_has_its_own_interval_too(factor: float, printed: bool) -> None:
    d = np.array([-0.01, 0, 0.01])[:, None] + 0.001 * np.random.default_rng(0).normal(size=5)
    results = gains_over_scratch({"a": factor * d, "b": d, "c": d})
    assert (results["a"].alone is not None) == printed
    if printed:
        assert results["a"].alone == pytest.approx(ends(gains_over_scratch({"a": factor * d})["a"]))
    assert results["b"].alone is None


# Test images as a sample


def test_the_headline_has_the_test_images_and_the_fixed_split_not() -> None:
    d, images = {"simclr": differences(0, 3, 5)}, 2e-4
    fixed, result = gains_over_scratch(d)["simclr"], gains_over_scratch(d, {"simclr": images})["simclr"]
    half = math.hypot(np.ptp(ends(fixed)) / 2, stats.norm.ppf(0.975) * math.sqrt(images))
    assert ends(result) == pytest.approx((result.gain - half, result.gain + half))
    assert result.fixed_split == ends(fixed)
    assert fixed.fixed_split is None


@pytest.mark.parametrize("images", [0.0, 1e-7, 1e-4])
def test_p_is_one_minus_the_level_of_the_interval_that_ends_at_zero(images: float) -> None:
    d = differences(0, 3, 5) - 0.03
    ((_, high), gain) = (lambda g: (ends(g), g.gain))(gains_over_scratch({"x": d}, {"x": images})["x"])
    at_zero = d + (high - gain) - gain  # its gain is the half-width, so its interval starts at 0
    result = gains_over_scratch({"x": at_zero}, {"x": images})["x"]
    assert result.low == pytest.approx(0, abs=1e-12)
    assert result.p == pytest.approx(0.05)
    far = gains_over_scratch({"x": 0.001 * d + 0.5}, {"x": images})["x"]
    assert far.p is not None
    assert 0 < far.p < 1e-6
    assert gains_over_scratch({"x": d - gain}, {"x": images})["x"].p == pytest.approx(1)


def test_the_variance_of_test_images_is_estimated_without_bias() -> None:
    rng = np.random.default_rng(0)
    subsets, images, of_image, of_run, of_subset = 4, 60, 0.3, 0.5, 0.2
    results = [
        image_variance(
            rng.normal(0, of_image, images)
            + rng.normal(0, of_run, (subsets, images))
            + rng.normal(0, of_subset, (subsets, 1))
        )
        for _ in range(1000)
    ]
    assert np.mean(np.array(results, dtype=float)) == pytest.approx(of_image**2 / images, rel=0.03)


def test_images_of_one_object_count_once() -> None:
    d = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], (3, 40))
    repeated, groups = np.repeat(d, 5, axis=1), np.repeat(np.arange(40), 5)
    assert image_variance(repeated, groups) == pytest.approx(image_variance(d))
    assert image_variance(d, np.arange(40) + 7) == pytest.approx(image_variance(d))
    alone = image_variance(repeated)
    assert alone is not None
    assert alone < 0.3 * image_variance(d)  # type: ignore[operator]


def test_one_difference_an_image_has_the_variance_of_a_mean() -> None:
    d = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], (1, 50))
    assert image_variance(d) == pytest.approx(d.var(ddof=1) / 50)
    assert image_variance(np.tile([[0.5], [-0.5]], (1, 50))) == 0


@pytest.mark.parametrize("units", [1, 2, 9])
def test_few_test_images_or_groups_are_no_sample(units: int) -> None:
    d = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], (3, 90))
    assert image_variance(d[:, :units]) is None
    assert image_variance(d, np.arange(90) % units) is None
    assert image_variance(d, np.arange(90) % 10) is not None


def test_the_headline_covers_the_gain_on_other_test_images_and_the_fixed_split_does_not() -> None:
    rng = np.random.default_rng(0)
    studies, subsets, images = 1000, 5, 100
    of_image, of_subset = rng.normal(0.02, 0.3, (studies, 1, images)), rng.normal(0, 0.01, (studies, subsets, 1))
    correctness = of_image + of_subset + rng.normal(0, 0.4, (studies, subsets, images))  # minus that of scratch
    results = [gains_over_scratch({"x": d.mean(1)[None]}, {"x": image_variance(d) or 0.0})["x"] for d in correctness]
    headline = np.mean([low <= 0.02 <= high for low, high in map(ends, results)])
    assert 0.935 <= headline <= 0.985
    assert np.mean([r.fixed_split is not None and r.fixed_split[0] <= 0.02 <= r.fixed_split[1] for r in results]) < 0.85


# Degenerate input


def test_runs_without_variation_have_no_interval() -> None:
    third = 0.1 + 0.2  # not 0.3
    for d in (np.zeros((3, 5)), np.full((1, 5), 0.02), np.array([[third, 0.3], [0.3, third]])):
        (result,) = gains_over_scratch({"x": d}).values()
        assert (result.low, result.high, result.p, result.df, result.assumed) == (None,) * 5
    result = gain_on_one_subset(np.full((2, 1), 0.9), np.full(3, 0.8))
    assert (result.gain, result.low, result.p) == (pytest.approx(0.1), None, None)


def test_a_task_that_equals_scratch_everywhere_is_in_no_pool() -> None:
    d = {"a": np.zeros((3, 5)), "b": differences(0, 3, 5), "c": differences(1, 3, 5), "d": np.full((3, 5), 0.02)}
    results = gains_over_scratch(d)
    assert results["b"] == gains_over_scratch({k: d[k] for k in "bc"})["b"]
    for task in "ad":
        assert (results[task].low, results[task].p, results[task].basis) == (None, None, "one task")
    assert gains_over_scratch({k: d[k] for k in "ab"})["b"] == gains_over_scratch({"b": d["b"]})["b"]


def test_runs_that_agree_by_chance_have_no_interval_of_the_test_images_alone() -> None:
    """Accuracies are multiples of 1/N, so few runs often do."""
    for d in (np.full((1, 2), 0.02), np.full((2, 3), 0.02)):
        (result,) = gains_over_scratch({"x": d}, {"x": 1e-4}).values()
        assert (result.low, result.high, result.p, result.df, result.fixed_split, result.assumed) == (None,) * 6
    result = gain_on_one_subset(np.full((2, 1), 0.9), np.full(3, 0.8), 1e-4)
    assert (result.gain, result.low, result.p) == (pytest.approx(0.1), None, None)


@pytest.mark.parametrize(("pretrained", "scratch"), [([[0.9]], [0.8, 0.7]), ([[0.9], [0.8]], [0.7]), ([[0.9]], [0.8])])
def test_a_single_run_on_one_subset_has_no_interval(pretrained: list[list[float]], scratch: list[float]) -> None:
    result = gain_on_one_subset(np.array(pretrained), np.array(scratch))
    assert result.gain == pytest.approx(np.mean(pretrained) - np.mean(scratch))
    assert (result.low, result.high, result.p, result.df) == (None,) * 4


def test_an_interval_does_not_leave_the_range_of_differences() -> None:
    (result,) = gains_over_scratch({"x": np.array([[0.9, 0.1], [0.2, 0.9]])}).values()
    assert ends(result) == (-1, 1)


def test_numbers_are_finite_or_none() -> None:
    for p, n, images, values in itertools.product((1, 2, 3), (2, 3), (None, 0.0, 1e-3), ((0.0, 0.0), (0.5, 1e-9),
                                                                                         (1.0, 1.0))):  # fmt: skip
        d = np.random.default_rng(0).normal(values[0], values[1], (p, n)).clip(-1, 1)
        d[0] = values[0]
        for result in gains_over_scratch({"a": d, "b": 0 * d}, {} if images is None else {"a": images}).values():
            flat = [x for v in dataclasses.astuple(result) for x in (v if isinstance(v, tuple) else (v,))]
            assert all(math.isfinite(x) for x in flat if isinstance(x, float))
            assert result.p is None or 0 <= result.p <= 1


@pytest.mark.parametrize("d", [np.zeros((3, 1)), np.zeros((0, 3)), np.zeros(3), np.array([[0.1, math.nan]])])
def test_a_matrix_that_is_no_study_is_refused(d: np.ndarray) -> None:
    with pytest.raises(ValueError, match="simclr: expected P x L finite differences with L >= 2"):
        gains_over_scratch({"rotation": differences(0, 3, 5), "simclr": d})


def test_accuracies_that_are_no_runs_are_refused() -> None:
    for pretrained, scratch in ((np.zeros(3), np.zeros(3)), (np.zeros((3, 1)), np.zeros(0)),
                                (np.array([[0.5, math.nan]]), np.zeros(2))):  # fmt: skip
        with pytest.raises(ValueError, match="expected"):
            gain_on_one_subset(pretrained, scratch)


def test_the_module_needs_no_torch() -> None:
    subprocess.run(
        [sys.executable, "-c", "import sys, sslrun.study.gains; sys.exit('torch' in sys.modules)"], check=True
    )


# Simulated studies of three tasks


STUDIES = 2000
TRUE_GAIN = 0.02
# SDs of subset x method, pretraining, training and scratch in points, and whether the effects are skewed
SETTINGS = {
    "typical": (1.5, 1, 1, 1, False),
    "pretrainings differ more": (1.5, 3, 1, 1, False),
    "subsets differ more": (4, 1, 1, 1, False),
    "noisy trainings": (1, 0.5, 3, 3, False),
    "no effect of pretraining": (1.5, 0, 1, 1, False),
    "only noise": (0, 0, 1, 1, False),
    "almost only pretraining": (0, 2, 0.5, 0.5, False),
    "skewed": (1.5, 1, 1, 1, True),
}


def studies(setting: str, pretrainings: int, subsets: int, gain: float) -> np.ndarray:
    """Return differences, `studies x tasks x pretrainings x subsets`; scratch is common to the tasks."""
    rng = np.random.default_rng(0)
    subset, pretraining, training, scratch, skewed = SETTINGS[setting]

    def draw(sd: float, *shape: int) -> np.ndarray:
        return 0.01 * sd * (rng.standard_exponential(shape) - 1 if skewed else rng.standard_normal(shape))

    n, half = STUDIES, subset / math.sqrt(2)
    pretrained = draw(half, n, 3, 1, subsets) + draw(pretraining, n, 3, pretrainings, 1)
    from_scratch = draw(half, n, 1, 1, subsets) + draw(scratch, n, 1, 1, subsets)
    return np.asarray(gain + pretrained + draw(training, n, 3, pretrainings, subsets) - from_scratch)


def share(cases: np.ndarray) -> tuple[float, float]:
    """Return a share of cases, `studies ...`, and two standard errors; studies are independent, tasks are not."""
    by_study = cases.reshape(len(cases), -1).mean(1)
    return float(by_study.mean()), float(2 * by_study.std(ddof=1) / math.sqrt(len(cases)))


@pytest.mark.parametrize("pretrainings", [3, 2])
@pytest.mark.parametrize("setting", SETTINGS)
def test_intervals_of_simulated_studies_contain_the_gain(setting: str, pretrainings: int) -> None:
    estimate = estimated(studies(setting, pretrainings, 5, TRUE_GAIN))
    coverage, error = share(np.abs(estimate.gain - TRUE_GAIN) <= half_widths(estimate))
    assert coverage + error >= 0.93


@pytest.mark.parametrize("pretrainings", [3, 2])
@pytest.mark.parametrize("setting", SETTINGS)
def test_holm_rejects_in_5_percent_of_simulated_studies_without_gains(setting: str, pretrainings: int) -> None:
    families = p_values(estimated(studies(setting, pretrainings, 5, 0.0))).tolist()
    wrong, error = share(np.array([holm(p) for p in families], dtype=float).min(1) < 0.05)
    assert wrong - error <= 0.05


@pytest.mark.parametrize("setting", ["typical", "pretrainings differ more"])
def test_the_simulation_sees_an_interval_that_is_too_narrow(setting: str) -> None:
    """Student's t over all cells takes them for independent."""
    cells = studies(setting, 3, 5, TRUE_GAIN).reshape(STUDIES, 3, 15)
    estimate = Estimate(cells.mean(-1), cells.var(-1, ddof=1) / 15, np.full((STUDIES, 3), 14.0))
    coverage, error = share(np.abs(estimate.gain - TRUE_GAIN) <= half_widths(estimate))
    assert coverage + error < 0.85


def test_a_simulated_study_has_the_gains_that_the_command_reports() -> None:
    d = studies("typical", 3, 5, TRUE_GAIN)[:20]
    estimate = estimated(d)
    half, p = half_widths(estimate), p_values(estimate)
    for i, study in enumerate(d):
        for k, result in enumerate(gains_over_scratch({str(k): x for k, x in enumerate(study)}).values()):
            low, high = estimate.gain[i, k] - half[i, k], estimate.gain[i, k] + half[i, k]
            assert (*ends(result), result.p) == pytest.approx((low, high, p[i, k]))


def test_one_pretraining_covers_its_checkpoint_and_with_an_assumed_sd_its_task() -> None:
    rng = np.random.default_rng(0)
    of_pretraining = rng.normal(0, ASSUMED_SD, (4 * STUDIES, 1))
    estimate = estimated(of_pretraining[:, None, :, None] + rng.normal(0, 0.015, (4 * STUDIES, 1, 1, 5)))
    own, assumed = half_widths(estimate), half_widths(estimate, ASSUMED_SD**2)
    coverage, error = share(np.abs(estimate.gain - of_pretraining) <= own)
    assert abs(coverage - 0.95) <= error
    assert np.mean(np.abs(estimate.gain) <= own) < 0.85
    assert np.mean(np.abs(estimate.gain) <= assumed) >= 0.95
