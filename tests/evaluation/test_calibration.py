"""Temperature, calibration error and threshold, against plain computations and on synthetic data."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import log_loss as sklearns_log_loss

from sslrun.evaluation.calibration import (
    calibration_error,
    fit_temperature,
    highest_accuracy,
    log_loss,
    no_threshold_text,
    reliability,
    tempered,
    threshold,
)


def synthetic(n: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return overconfident probabilities (logits times `temperature`), and labels drawn from the true ones."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, 4))
    labels = np.array([rng.choice(4, p=p) for p in softmax(logits, 1)])
    return softmax(logits * temperature, 1), labels


def test_tempered_divides_the_logits() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (50, 5))
    p = softmax(logits, 1)
    assert tempered(p, 2.5) == pytest.approx(softmax(logits / 2.5, 1), abs=1e-9)
    assert tempered(p, 1.0) == pytest.approx(p, abs=1e-9)
    assert (tempered(p, 7.0).argmax(1) == p.argmax(1)).all()


@pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
def test_the_temperature_is_recovered(true: float) -> None:
    p, labels = synthetic(20_000, true)
    assert fit_temperature(p, labels) == pytest.approx(true, rel=0.05)
    assert calibration_error(tempered(p, fit_temperature(p, labels)), labels) < 0.015
    assert fit_temperature(p[:0], labels[:0]) == 1.0


def test_no_temperature_makes_the_labels_likelier() -> None:
    p, labels = synthetic(300, 2.0)
    best = log_loss(tempered(p, fit_temperature(p, labels)), labels)
    for t in np.geomspace(0.06, 19, 60):
        assert best <= log_loss(tempered(p, float(t)), labels) + 1e-3


def test_a_few_correct_predictions_do_not_lead_to_full_confidence() -> None:
    p = np.tile([0.8, 0.2], (10, 1))
    confidence = tempered(p, fit_temperature(p, np.zeros(10, int)))[0, 0]
    assert confidence == pytest.approx(1 - 1 / 12 / 2, abs=1e-3)  # Platt's smoothed target


def test_log_loss_equals_scikit_learns_and_is_finite_at_zero() -> None:
    p, labels = synthetic(100, 1.0)
    assert log_loss(p, labels) == pytest.approx(sklearns_log_loss(labels, p, labels=range(4)))
    assert np.isfinite(log_loss(np.array([[1.0, 0.0]]), np.array([1])))
    assert np.isfinite(tempered(np.array([[1.0, 0.0]]), 0.05)).all()


def test_calibration_error_against_a_plain_loop() -> None:
    p, labels = synthetic(500, 3.0)
    confidence, correct = p.max(1), p.argmax(1) == labels
    expected = 0.0
    for b in range(15):
        inside = [i for i in range(500) if b / 15 < confidence[i] <= (b + 1) / 15]
        if inside:
            gap = np.mean([confidence[i] for i in inside]) - np.mean([correct[i] for i in inside])
            expected += len(inside) / 500 * abs(gap)
    assert calibration_error(p, labels) == pytest.approx(expected)
    rows = reliability(p, labels)
    assert sum(r["images"] for r in rows) == 500
    assert all(r["low"] < r["confidence"] <= r["high"] for r in rows if r["images"])
    assert calibration_error(np.eye(3), np.arange(3)) == 0.0  # fully confident and correct


def test_probabilities_near_one_are_tempered_like_their_logits() -> None:
    logits = np.array([[60.0, 0.0, -5.0]])
    p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    z = logits / 5 - (logits / 5).max()
    assert np.allclose(tempered(p.astype(np.float32), 5.0), np.exp(z) / np.exp(z).sum(), atol=1e-6)


def test_the_threshold_is_the_lowest_that_reaches_95_percent() -> None:
    p, labels = synthetic(2000, 1.0)
    t = threshold(p, labels)
    assert t is not None
    confidence, correct = p.max(1), p.argmax(1) == labels
    assert correct[confidence >= t].mean() >= 0.95
    assert all(correct[confidence >= lower].mean() < 0.95 for lower in confidence[confidence < t])
    assert threshold(np.full((100, 2), 0.5), np.zeros(100, int)) == 0.5  # all correct with the same confidence
    assert threshold(np.full((100, 2), 0.5), np.ones(100, int)) is None  # none correct
    assert threshold(np.eye(3), np.arange(3)) is None  # too few images


def of_confidence(*confidences: float) -> np.ndarray:
    """Return probabilities of two classes, given those of the first."""
    first = np.array(confidences)
    return np.stack([first, 1 - first], 1)


def test_a_confidence_on_the_edge_of_two_bins_is_in_the_lower_one() -> None:
    rows = reliability(of_confidence(0.5, 0.75, 0.75, 1.0), np.zeros(4, int), bins=4)
    assert [r["images"] for r in rows] == [0, 1, 2, 1]
    assert [r["confidence"] for r in rows] == [None, 0.5, 0.75, 1.0]
    assert [(r["low"], r["high"]) for r in rows] == [(0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1)]
    just_above = reliability(of_confidence(0.5 + 1e-6, 0.75 + 1e-6), np.zeros(2, int), bins=4)
    assert [r["images"] for r in just_above] == [0, 0, 1, 1]


@pytest.mark.parametrize("correct_first", [True, False])
def test_equally_confident_predictions_are_all_above_the_threshold_or_none(correct_first: bool) -> None:
    """In any order: of the 60 at 0.9 only 30 are correct."""
    p = of_confidence(*[0.99] * 25, *[0.9] * 60)
    at_90 = [0] * 30 + [1] * 30 if correct_first else [1] * 30 + [0] * 30
    assert threshold(p, np.array([0] * 25 + at_90)) == 0.99
    assert threshold(of_confidence(*[0.9] * 60), np.array(at_90)) is None


@pytest.mark.parametrize(("confidence", "expected"), [(0.91239, 0.9123), (0.91231, 0.9123), (0.99999, 0.9999)])
def test_the_threshold_is_rounded_down_so_that_its_own_predictions_pass(confidence: float, expected: float) -> None:
    assert threshold(of_confidence(*[confidence] * 40), np.zeros(40, int)) == expected


def test_the_threshold_needs_20_predictions() -> None:
    assert threshold(of_confidence(*[0.9] * 20), np.zeros(20, int)) == 0.9
    assert threshold(of_confidence(*[0.9] * 19), np.zeros(19, int)) is None


def test_the_threshold_accepts_exactly_95_percent() -> None:
    p = of_confidence(*[0.8] * 100)
    assert threshold(p, np.array([1] * 5 + [0] * 95)) == 0.8
    assert threshold(p, np.array([1] * 6 + [0] * 94)) is None


@pytest.mark.parametrize("true", [0.08, 15.0])
def test_extreme_temperatures_are_recovered(true: float) -> None:
    p, labels = synthetic(5000, true)
    assert fit_temperature(p, labels) == pytest.approx(true, rel=0.1)


def test_the_calibration_error_depends_on_the_number_of_bins() -> None:
    """In one bin the gaps of 0.6 and 0.7 cancel out: the mean confidence is 0.65, the accuracy 0.5."""
    p, labels = of_confidence(*[0.6] * 10, *[0.7] * 10), np.array([0] * 10 + [1] * 10)
    assert calibration_error(p, labels, bins=1) == pytest.approx(0.15)
    assert calibration_error(p, labels) == pytest.approx((0.4 + 0.7) / 2)


@pytest.mark.parametrize("seed", range(4))
def test_the_highest_accuracy_is_that_of_the_best_confidence_with_20_predictions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, labels = of_confidence(*rng.choice([0.6, 0.7, 0.8, 0.9], 80)), rng.integers(0, 2, 80)
    above = [p.max(1) >= c for c in p.max(1)]
    naive = max((p.argmax(1) == labels)[a].mean() for a in above if a.sum() >= 20)
    highest = highest_accuracy(p, labels)
    assert highest == pytest.approx(naive)
    assert highest is not None
    assert (threshold(p, labels) is None) == (highest < 0.95)


def test_the_highest_accuracy_needs_20_predictions() -> None:
    assert [highest_accuracy(of_confidence(*[0.9] * n), np.zeros(n, int)) for n in (0, 1, 19, 20, 21)] == [
        None, None, None, 1, 1,
    ]  # fmt: skip
    assert highest_accuracy(of_confidence(*[0.9] * 30), np.ones(30, int)) == 0


@pytest.mark.parametrize(
    ("validation", "highest", "text"),
    [
        (0, None, "without validation images there is no confidence threshold"),
        (1, None, "a confidence threshold needs at least 20 validation images, found 1"),
        (19, None, "a confidence threshold needs at least 20 validation images, found 19"),
        (20, 0.9, "and at least 20, are classified correctly; at most 90.0 % are"),
        (21, 0.94999, "and at least 20, are classified correctly; at most 94.9 % are"),  # and not 95.0 %
        (300, None, "there is no confidence above which 95.0 % of the validation images"),  # of an older version
        (None, None, "there is no confidence above which 95.0 % of the validation images"),
    ],
)
def test_the_reason_for_no_threshold_is_the_true_one(validation: int | None, highest: float | None, text: str) -> None:
    reason = no_threshold_text(validation, highest)
    assert reason.startswith(text) or reason.endswith(text)
    assert ("at most" in reason) == (highest is not None)
