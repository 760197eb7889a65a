"""Temperature, calibration error and threshold, against plain computations and on synthetic data."""

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import binom, binomtest
from sklearn.metrics import log_loss as sklearns_log_loss

from sslrun.evaluation.calibration import (
    Threshold,
    calibration_error,
    fit_temperature,
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


def posterior_loss(p: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    true = tempered(p, temperature)[np.arange(len(labels)), labels]
    return float(-np.log(true).sum() + 0.5 * (np.log(temperature / 1.5) / 0.5) ** 2)


@pytest.mark.parametrize("n", [5, 30, 300])
def test_no_temperature_makes_the_labels_and_itself_likelier(n: int) -> None:
    """On a grid of 2,000 temperatures between 0.06 and 19."""
    p, labels = synthetic(n, 2.0)
    grid = np.geomspace(0.06, 19, 2000)
    best = grid[np.argmin([posterior_loss(p, labels, t) for t in grid])]
    assert fit_temperature(p, labels) == pytest.approx(best, rel=0.005)


def test_a_few_correct_predictions_do_not_lead_to_full_confidence() -> None:
    """Maximum likelihood would have no maximum: the lower the temperature, the likelier the labels."""
    p = np.tile([0.8, 0.2], (10, 1))
    temperature = fit_temperature(p, np.zeros(10, int))
    assert 0.5 < temperature < 1
    assert 0.85 < tempered(p, temperature)[0, 0] < 0.95


def test_one_image_hardly_moves_the_temperature_from_the_prior() -> None:
    assert fit_temperature(np.array([[0.6, 0.4]]), np.array([0])) == pytest.approx(1.5, abs=0.15)
    assert fit_temperature(np.array([[0.5, 0.5]]), np.array([0])) == pytest.approx(1.5, abs=1e-3)


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


def certified(p: np.ndarray, labels: np.ndarray) -> float | None:
    """Return the certified threshold computed one candidate after the other, from the strictest."""
    confidence, right = np.floor(p.max(1) * 1e4) / 1e4, p.argmax(1) == labels
    found = None
    for value in sorted(set(confidence), reverse=True):
        accepted = right[confidence >= value]
        if len(accepted) < max(59, len(labels) / 10):
            continue
        bound = binomtest(int(accepted.sum()), len(accepted), alternative="greater").proportion_ci(0.95, "exact").low
        if bound < 0.95:
            return found
        found = value
    return found


@pytest.mark.parametrize("n", [40, 200, 1200])
@pytest.mark.parametrize("seed", range(3))
def test_a_certified_threshold_is_the_last_before_the_first_failure(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    p = of_confidence(*(1 - rng.beta(1, 12, n) / 2))
    labels = (rng.random(n) > p[:, 0]).astype(int)
    result, expected = threshold(p, labels), certified(p, labels)
    assert result is not None
    assert result.certified == (expected is not None)
    if expected is not None:
        above = p.max(1) >= result.value
        assert result == Threshold(expected, True, int((labels[above] == 0).sum()), int(above.sum()))


@pytest.mark.parametrize(("n", "wrong", "passed"), [(58, 0, False), (59, 0, True), (92, 1, False), (93, 1, True)])
def test_59_predictions_without_and_93_with_one_error_are_certified(n: int, wrong: int, passed: bool) -> None:
    labels = np.array([1] * wrong + [0] * (n - wrong))
    assert threshold(of_confidence(*[0.97] * n), labels) == Threshold(0.97, passed, n - wrong, n)
    assert threshold(of_confidence(*[0.97] * n), labels, independent=False) == Threshold(0.97, False, n - wrong, n)


def test_the_first_threshold_that_is_tested_accepts_a_tenth() -> None:
    """Of 1,000 predictions, one of the first 59 is wrong, but no other one of the first 100."""
    labels = np.zeros(1000, int)
    labels[30] = 1
    labels[400:] = np.arange(600) % 2
    result = threshold(of_confidence(*np.linspace(0.99, 0.9, 1000)), labels)
    assert result is not None
    assert result.certified
    assert result.accepted is not None
    assert 400 <= result.accepted < 450
    fewer = threshold(of_confidence(*np.linspace(0.99, 0.9, 590)), labels[:590])  # a tenth of which is 59
    assert fewer is not None
    assert not fewer.certified


def test_a_certificate_is_wrong_in_at_most_5_percent_of_the_cases() -> None:
    """All predictions have an accuracy of just below 95 %, whatever their confidence."""
    rng, p = np.random.default_rng(0), of_confidence(*np.linspace(0.99, 0.6, 200))
    results = [threshold(p, (rng.random(200) > 0.9499).astype(int)) for _ in range(600)]
    wrong = sum(r is not None and r.certified for r in results)
    assert 0 < wrong <= binom.ppf(0.975, 600, 0.05)


def test_otherwise_the_mean_confidence_above_the_threshold_is_95_percent() -> None:
    """0.99, 0.97 and 0.91 have a mean of 0.957, with 0.9 it is 0.9425; whether they are correct does not matter."""
    p = of_confidence(0.9, 0.99, 0.91, 0.97, 0.6)
    for labels, correct in (([0] * 5, 3), ([1, 0, 1, 0, 0], 2)):
        assert threshold(p, np.array(labels)) == Threshold(0.91, False, correct, 3)
    assert threshold(of_confidence(0.96), np.array([1])) == Threshold(0.96, False, 0, 1)


def test_no_threshold_without_images_and_if_no_confidence_reaches_95_percent() -> None:
    assert threshold(np.zeros((0, 3)), np.zeros(0, int)) is None
    assert threshold(of_confidence(*[0.9499] * 40), np.zeros(40, int)) is None
    assert threshold(of_confidence(*[0.95] * 40), np.zeros(40, int)) == Threshold(0.95, False, 40, 40)
    certified = threshold(of_confidence(*[0.9499] * 59), np.zeros(59, int))
    assert certified == Threshold(0.9499, True, 59, 59)  # which is known despite the low confidence


@pytest.mark.parametrize("wrong_first", [True, False])
def test_equally_confident_predictions_are_all_above_the_threshold_or_none(wrong_first: bool) -> None:
    """In any order: of the 60 at 0.95 only 30 are correct."""
    p = of_confidence(*[0.99] * 70, *[0.95] * 60)
    at_95 = sorted([0] * 30 + [1] * 30, reverse=wrong_first)
    assert threshold(p, np.array([0] * 70 + at_95)) == Threshold(0.99, True, 70, 70)
    aimed = of_confidence(*[0.99] * 25, *[0.9] * 60)
    assert threshold(aimed, np.array([0] * 25 + at_95)) == Threshold(0.99, False, 25, 25)


@pytest.mark.parametrize(("confidence", "expected"), [(0.95239, 0.9523), (0.95231, 0.9523), (0.99999, 0.9999)])
def test_the_threshold_is_rounded_down_so_that_its_own_predictions_pass(confidence: float, expected: float) -> None:
    for n in (40, 60):
        result = threshold(of_confidence(*[confidence] * n), np.zeros(n, int))
        assert result == Threshold(expected, n == 60, n, n)


def test_a_threshold_is_read_from_its_metrics() -> None:
    for given in (Threshold(0.93, True, 106, 107), Threshold(0.81, False, 19, 20)):
        assert Threshold.of({"val/accuracy": 0.5, **given.metrics()}) == given
        assert all(isinstance(v, float) for v in given.metrics().values())
    assert Threshold.of({"val/confidence_threshold": 0.8}) == Threshold(0.8, False)  # of an older version
    assert Threshold.of({"val/accuracy": 0.5}) is None


@pytest.mark.parametrize(
    ("given", "grouped", "text"),
    [
        (Threshold(0.9, True, 1106, 1107), False, "accuracy above it at least 95 %, certified with 95 % confidence: "
         "1,106 of 1,107 predictions on validation are correct"),
        (Threshold(0.9, False, 38, 40), False, "aimed at an accuracy of 95 % above it, not certified: 38 of 40 "
         "predictions on validation are correct, 95 % CI 83.5 to 98.6"),
        (Threshold(0.9, False, 38, 40), True, "aimed at an accuracy of 95 % above it, not certified: 38 of 40 "
         "predictions on validation are correct"),
        (Threshold(0.9, False), False, "aimed at an accuracy of 95 % above it, not certified"),
    ],
)  # fmt: skip
def test_the_words_of_a_threshold(given: Threshold, grouped: bool, text: str) -> None:
    assert given.text(grouped) == text


@pytest.mark.parametrize("true", [0.08, 15.0])
def test_extreme_temperatures_are_recovered(true: float) -> None:
    p, labels = synthetic(5000, true)
    assert fit_temperature(p, labels) == pytest.approx(true, rel=0.1)


def test_the_calibration_error_depends_on_the_number_of_bins() -> None:
    """In one bin the gaps of 0.6 and 0.7 cancel out: the mean confidence is 0.65, the accuracy 0.5."""
    p, labels = of_confidence(*[0.6] * 10, *[0.7] * 10), np.array([0] * 10 + [1] * 10)
    assert calibration_error(p, labels, bins=1) == pytest.approx(0.15)
    assert calibration_error(p, labels) == pytest.approx((0.4 + 0.7) / 2)


OLD = {"val/accuracy": 0.8, "val/temperature": 1.2}  # of 0.1.0, without a threshold


@pytest.mark.parametrize(
    ("metrics", "text"),
    [
        ({}, "without validation images there is no confidence threshold"),
        ({"train/loss": 1.0}, "without validation images there is no confidence threshold"),
        ({**OLD, "val/highest_confidence": 0.94999},  # and not 95.0 %
         "no prediction on validation has a calibrated confidence of 95.0 %; the highest is 94.9 %"),
        ({**OLD, "val/accuracy_if_confident": 0.9},
         "there is no confidence above which the accuracy on validation is 95.0 %; the highest is 90.0 %"),
        (OLD, "its validation images were too few, or there is no confidence above which their accuracy is 95.0 %"),
    ],
)  # fmt: skip
def test_the_reason_for_no_threshold_is_the_true_one(metrics: dict[str, float], text: str) -> None:
    assert no_threshold_text(metrics) == text
