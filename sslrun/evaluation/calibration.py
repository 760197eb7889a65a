"""How far a classifier's confidence can be believed: temperature, calibration error, and when to say nothing."""

import math
from typing import Any

import numpy as np

BINS = 15  # Guo et al. 2017
SURE = 0.95  # of the predictions above the threshold are right
FEWEST = 20  # predictions above the threshold, on validation; fewer show nothing
NEVER = 1e-12  # what a probability of 0 counts as in a mean of logarithms
LEAST = float(np.finfo(np.float32).tiny)  # probability that is not 0
COLDEST, HOTTEST = 0.05, 20.0


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Divide the logits of probabilities, `N x classes`, by a temperature; the classes' order stays."""
    z = np.log(np.clip(probabilities.astype(np.float64), LEAST, None)) / temperature
    e = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean negative log-likelihood in nats of the labels, N."""
    from sklearn import metrics

    p = probabilities.astype(np.float64).clip(NEVER)
    return float(metrics.log_loss(labels, p / p.sum(1, keepdims=True), labels=np.arange(p.shape[1])))


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature that makes labels most likely (Guo et al. 2017), to be fitted on validation.

    A share 1 / (N + 2) of every label is spread over the classes, as Platt (1999) has it: that a few pictures were all
    right is no reason to be sure of everything.

    Args:
        probabilities: `N x classes`.
        labels: N; none gives 1.
    """
    from scipy.optimize import minimize_scalar

    if not len(labels):
        return 1.0
    doubt = 1 / (len(labels) + 2)

    def loss(log_temperature: float) -> float:
        p = tempered(probabilities, math.exp(log_temperature))
        return (1 - doubt) * log_loss(p, labels) - doubt * float(np.log(p.clip(1e-300)).mean())

    return float(math.exp(minimize_scalar(loss, bounds=(math.log(COLDEST), math.log(HOTTEST))).x))


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> list[dict[str, Any]]:
    """Return for bins of equal width in confidence, (low, high], what was said and what was right.

    Returns:
        `low`, `high`, `images`, and the means `confidence` and `accuracy`, None in an empty bin.
    """
    sure, right = probabilities.max(1), probabilities.argmax(1) == labels
    bin_of = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    out = []
    for b in range(bins):
        inside = bin_of == b
        n = int(inside.sum())
        out.append(
            {
                "low": b / bins,
                "high": (b + 1) / bins,
                "images": n,
                "confidence": float(sure[inside].mean()) if n else None,
                "accuracy": float(right[inside].mean()) if n else None,
            }
        )
    return out


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Return the mean gap of confidence and accuracy over bins, the expected one (Guo et al. 2017, eq. 3)."""
    rows = [r for r in reliability(probabilities, labels, bins) if r["images"]]
    return float(sum(r["images"] * abs(r["confidence"] - r["accuracy"]) for r in rows) / len(labels))


def threshold(probabilities: np.ndarray, labels: np.ndarray) -> float | None:
    """Return the lowest confidence from which on 95 % of the predictions are right, to be chosen on validation.

    It is rounded down to four places, since confidences are shown, and compared, with four.

    Returns:
        None where 20 pictures or more cannot be told apart like that.
    """
    sure, right = probabilities.max(1), probabilities.argmax(1) == labels
    order = np.argsort(-sure, kind="stable")
    share = right[order].cumsum() / np.arange(1, len(labels) + 1)
    last = np.append(sure[order][1:] != sure[order][:-1], True)  # of pictures with the same confidence
    good = np.flatnonzero((share >= SURE) & last & (np.arange(1, len(labels) + 1) >= FEWEST))
    return math.floor(float(sure[order][good[-1]]) * 1e4) / 1e4 if len(good) else None
