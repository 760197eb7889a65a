"""Calibration of a classifier's confidence: temperature scaling, calibration error, confidence threshold."""

import math
from typing import Any

import numpy as np

from sslrun.base.text import percent

BINS = 15  # Guo et al. 2017
TARGET_ACCURACY = 0.95  # of the predictions at or above the threshold
MIN_PREDICTIONS = 20  # at or above the threshold; fewer are not enough evidence
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
    """Fit the temperature that maximizes the likelihood of the labels (Guo et al. 2017), on validation.

    Labels are smoothed by 1 / (N + 2), as in Platt (1999), so that a few correct predictions do not lead to full
    confidence.

    Args:
        probabilities: `N x classes`.
        labels: N; without labels the temperature is 1.
    """
    from scipy.optimize import minimize_scalar

    if not len(labels):
        return 1.0
    smoothing = 1 / (len(labels) + 2)

    def loss(log_temperature: float) -> float:
        p = tempered(probabilities, math.exp(log_temperature))
        return (1 - smoothing) * log_loss(p, labels) - smoothing * float(np.log(p.clip(1e-300)).mean())

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


def threshold(probabilities: np.ndarray, labels: np.ndarray) -> float | None:
    """Return the lowest confidence at or above which 95 % of the predictions are correct, on validation.

    It is rounded down to four decimals, because confidences are compared and reported with four.

    Returns:
        None if there is no such confidence with at least 20 predictions.
    """
    confidence, accuracy = _accuracy_above(probabilities, labels)
    good = np.flatnonzero(accuracy >= TARGET_ACCURACY)
    return math.floor(float(confidence[good[-1]]) * 1e4) / 1e4 if len(good) else None


def highest_accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float | None:
    """Return the highest accuracy of the predictions at or above any confidence; None for fewer than 20 predictions."""
    _, accuracy = _accuracy_above(probabilities, labels)
    return float(accuracy.max()) if len(accuracy) else None


def _accuracy_above(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each confidence with at least 20 predictions at or above it, in descending order, and their accuracy."""
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    order = np.argsort(-confidence, kind="stable")
    ranked, counts = confidence[order], np.arange(1, len(labels) + 1)
    accuracy = correct[order].cumsum() / counts
    last = np.append(ranked[1:] != ranked[:-1], True)[: len(labels)]  # of the images with the same confidence
    enough = last & (counts >= MIN_PREDICTIONS)
    return ranked[enough], accuracy[enough]


def no_threshold_text(validation: int | None, highest: float | None) -> str:
    """Return the reason why a classifier has no confidence threshold, as part of a sentence.

    Args:
        validation: number of validation images, None if unknown.
        highest: see `highest_accuracy`; None if unknown.
    """
    if validation == 0:
        return "without validation images there is no confidence threshold"
    if validation is not None and validation < MIN_PREDICTIONS:
        return f"a confidence threshold needs at least {MIN_PREDICTIONS} validation images, found {validation}"
    most = "" if highest is None else f"; at most {percent(math.floor(1000 * highest + 1e-6) / 1000)} are"
    good = f"{percent(TARGET_ACCURACY)} of the validation images, and at least {MIN_PREDICTIONS},"
    return f"there is no confidence above which {good} are classified correctly{most}"
