"""Calibration of a classifier's confidence: temperature scaling, calibration error, confidence threshold."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sslrun.base.text import counted, interval, percent
from sslrun.evaluation.intervals import LEVEL, wilson_interval

BINS = 15  # Guo et al. 2017
TARGET_ACCURACY = 0.95  # of the predictions at or above the threshold
MIN_CERTIFIED = 59  # accepted predictions: 0.95^59 is the first power below 5 %
STRICTEST = 0.1  # of the predictions, accepted by the first threshold that is tested
PRIOR_TEMPERATURE, PRIOR_SD = 1.5, 0.5  # log-normal: networks are usually overconfident (Guo et al. 2017)
EPSILON = 1e-12  # lower limit of probabilities in the log loss
TINY = float(np.finfo(np.float32).tiny)  # lower limit of probabilities before temperature scaling
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Divide the logits of probabilities, `N x classes`, by a temperature; the ranking of the classes is unchanged."""
    z = np.log(np.clip(probabilities.astype(np.float64), TINY, None)) / temperature
    e = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean negative log-likelihood of the labels, N, in nats."""
    from sklearn import metrics

    p = probabilities.astype(np.float64).clip(EPSILON)
    return float(metrics.log_loss(labels, p / p.sum(1, keepdims=True), labels=np.arange(p.shape[1])))


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Fit the temperature (Guo et al. 2017) by maximum a posteriori, on validation.

    Its logarithm has a normal prior with mean ln 1.5 and SD 0.5: with few images, maximum likelihood often has no
    maximum, and a few correct predictions would lead to full confidence. From some hundred images on, the prior hardly
    matters.

    Args:
        probabilities: `N x classes`.
        labels: N; without labels nothing is calibrated, and the temperature is 1.
    """
    from scipy.optimize import minimize_scalar

    if not len(labels):
        return 1.0

    def loss(log_temperature: float) -> float:
        likelihood = len(labels) * log_loss(tempered(probabilities, math.exp(log_temperature)), labels)
        return likelihood + 0.5 * ((log_temperature - math.log(PRIOR_TEMPERATURE)) / PRIOR_SD) ** 2

    return float(math.exp(minimize_scalar(loss, bounds=(math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE))).x))


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> list[dict[str, Any]]:
    """Compute the reliability diagram, in bins of equal width in confidence, (low, high].

    Returns:
        For each bin `low`, `high`, `images`, and the means `confidence` and `accuracy`, None in an empty bin.
    """
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    out = []
    for b in range(bins):
        inside = bin_of == b
        n = int(inside.sum())
        out.append(
            {
                "low": b / bins,
                "high": (b + 1) / bins,
                "images": n,
                "confidence": float(confidence[inside].mean()) if n else None,
                "accuracy": float(correct[inside].mean()) if n else None,
            }
        )
    return out


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Return the expected calibration error: the mean gap of confidence and accuracy (Guo et al. 2017, eq. 3)."""
    rows = [r for r in reliability(probabilities, labels, bins) if r["images"]]
    return float(sum(r["images"] * abs(r["confidence"] - r["accuracy"]) for r in rows) / len(labels))


@dataclass(frozen=True)
class Threshold:
    """A confidence at or above which predictions should have an accuracy of 95 %.

    Attributes:
        value: rounded down to four decimals, because confidences are compared and reported with four.
        certified: whether the accuracy is at least 95 % with 95 % confidence; otherwise the threshold aims at it.
        correct: number of predictions on validation at or above it that are correct; None for runs of older versions.
        accepted: number of predictions on validation at or above it, likewise.
    """

    value: float
    certified: bool
    correct: int | None = None
    accepted: int | None = None

    @classmethod
    def of(cls, metrics: Mapping[str, float]) -> "Threshold | None":
        """Read the threshold from the metrics of a classifier on validation; None if there is none."""
        if "val/confidence_threshold" not in metrics:
            return None
        correct, accepted = (
            int(metrics[k]) if k in metrics else None for k in ("val/confidence_correct", "val/confidence_accepted")
        )
        certified = bool(metrics.get("val/confidence_certified", 0))
        return cls(metrics["val/confidence_threshold"], certified, correct, accepted)

    def metrics(self) -> dict[str, float]:
        """Return the metrics from which `of` reads it."""
        assert self.correct is not None
        assert self.accepted is not None
        return {
            "val/confidence_threshold": self.value,
            "val/confidence_certified": float(self.certified),
            "val/confidence_correct": float(self.correct),
            "val/confidence_accepted": float(self.accepted),
        }

    def text(self, grouped: bool = False) -> str:
        """Return what is known about the accuracy above the threshold, as part of a sentence.

        Args:
            grouped: whether validation images are dependent: then an interval would be too narrow, and none is given.
        """
        words = "aimed at an accuracy of 95 % above it, not certified"
        if self.certified:
            words = "accuracy above it at least 95 %, certified with 95 % confidence"
        if self.correct is None or not self.accepted:
            return words
        known = f"{self.correct:,} of {counted(self.accepted, 'prediction')} on validation are correct"
        if self.certified or grouped:
            return f"{words}: {known}"
        return f"{words}: {known}, 95 % CI {interval(*wilson_interval(self.correct, self.accepted))}"


def threshold(probabilities: np.ndarray, labels: np.ndarray, independent: bool = True) -> Threshold | None:
    """Return the lowest confidence at or above which the accuracy is 95 %, certified if possible.

    Certified: thresholds are tested in a fixed sequence from the strictest to lower ones (the first accepts a tenth of
    the predictions, and at least 59), each with a one-sided Clopper-Pearson bound at 95 %, and the last one before the
    first failure is taken. That needs no correction for the number of tests, but at least 59 correct predictions.

    Otherwise: the lowest one above which the mean calibrated confidence is 95 %.

    Args:
        probabilities: `N x classes`, calibrated.
        labels: N, on validation.
        independent: whether the images are; if not, as with groups, nothing is certified.

    Returns:
        None without images, and if no confidence reaches 95 %.
    """
    if not len(labels):
        return None
    confidence, correct, accepted, mean = _accepted(probabilities, labels)
    certified = _certified(correct, accepted) if independent else None
    reached = np.flatnonzero(mean >= TARGET_ACCURACY)
    if certified is None and not len(reached):
        return None
    i = int(reached[-1]) if certified is None else certified
    return Threshold(float(confidence[i]), certified is not None, int(correct[i]), int(accepted[i]))


def _accepted(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return each distinct confidence in descending order, and of the predictions at or above it the numbers of
    correct and of all ones, and the mean confidence."""
    exact, right = probabilities.max(1).astype(np.float64), probabilities.argmax(1) == labels
    rounded = np.floor(exact * 1e4) / 1e4
    order = np.argsort(-rounded, kind="stable")
    ranked, counts = rounded[order], np.arange(1, len(labels) + 1)
    last = np.append(ranked[1:] != ranked[:-1], True)  # of the predictions with the same confidence
    mean = exact[order].cumsum() / counts
    return ranked[last], right[order].cumsum()[last], counts[last], mean[last]


def _certified(correct: np.ndarray, accepted: np.ndarray) -> int | None:
    """Return the position of the lowest threshold of the sequence before the first that fails; None if that is the
    first."""
    from scipy.stats import binom

    first = int(np.searchsorted(accepted, max(MIN_CERTIFIED, math.ceil(STRICTEST * accepted[-1]))))
    passed = binom.sf(correct[first:] - 1, accepted[first:], TARGET_ACCURACY) <= 1 - LEVEL
    n = int(np.argmin(np.append(passed, False)))
    return first + n - 1 if n else None


def no_threshold_text(metrics: Mapping[str, float]) -> str:
    """Return the reason why a classifier has no confidence threshold, as part of a sentence.

    Args:
        metrics: of the classifier on validation.
    """
    goal = percent(TARGET_ACCURACY)
    if not any(k.startswith("val/") for k in metrics):
        return "without validation images there is no confidence threshold"
    if (highest := metrics.get("val/highest_confidence")) is not None:
        most = percent(math.floor(1000 * highest + 1e-6) / 1000)
        return f"no prediction on validation has a calibrated confidence of {goal}; the highest is {most}"
    if (accuracy := metrics.get("val/accuracy_if_confident")) is not None:  # of an older version
        most = percent(math.floor(1000 * accuracy + 1e-6) / 1000)
        return f"there is no confidence above which the accuracy on validation is {goal}; the highest is {most}"
    return f"its validation images were too few, or there is no confidence above which their accuracy is {goal}"
