"""Choosing among candidates by their predictions on images that their training did not use."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sslrun.evaluation.calibration import EPSILON, fit_temperature, tempered

BAGS, DRAWS = 1000, 5_000_000  # of the bootstrap, as in Tsamardinos et al. 2018; fewer bags of more images in all
TIE = 1e-9  # weight of the log-likelihood among variants, where it only breaks ties; tolerance for rounding errors
UNDECIDED = 2.0  # standard errors up to which a difference in accuracy between candidates may be chance


@dataclass(frozen=True)
class Predictions:
    """Predictions of several candidates, each on images that its training did not use.

    Attributes:
        names: the candidates, the simplest first; A entries, since variants of a candidate have the same name.
        probabilities: `A x N x classes`; NaN for images on which a candidate was not evaluated.
        labels: N.
        macro: choose by macro F1 instead of accuracy.
        groups: number of each image's group, N; images of a group are not independent. None: each image is one.
    """

    names: Sequence[str]
    probabilities: np.ndarray
    labels: np.ndarray
    macro: bool = False
    groups: np.ndarray | None = None

    @cached_property
    def predicted(self) -> np.ndarray:
        """The predicted classes, `A x N`; 0 where a candidate was not evaluated."""
        return np.asarray(np.nan_to_num(self.probabilities).argmax(2))

    @cached_property
    def correct(self) -> np.ndarray:
        """Whether they are correct, `A x N`, as floats."""
        return (self.predicted == self.labels).astype(np.float64)

    @cached_property
    def log_likelihood(self) -> np.ndarray:
        """The logarithm of the probability of the label, `A x N`; NaN where a candidate was not evaluated."""
        of_label = self.probabilities[:, np.arange(len(self.labels)), self.labels]
        return np.asarray(np.log(of_label.astype(np.float64).clip(EPSILON)))

    @cached_property
    def calibrated(self) -> np.ndarray:
        """The log-likelihood after temperature scaling of each candidate on its images, `A x N`; NaN likewise."""
        out = np.full(self.correct.shape, np.nan)
        for i, p in enumerate(self.probabilities):
            rows = self.evaluated(np.array([i]))
            p, labels = p[rows], self.labels[rows]
            of_label = tempered(p, fit_temperature(p, labels))[np.arange(len(rows)), labels]
            out[i, rows] = np.log(of_label.clip(EPSILON))
        return out

    @property
    def units(self) -> np.ndarray:
        """The number of each image's independent unit, N: its group, or itself."""
        return np.arange(len(self.labels)) if self.groups is None else self.groups

    @cached_property
    def common(self) -> np.ndarray:
        """The positions of the images on which all candidates were evaluated."""
        return self.evaluated(np.arange(len(self.names)))

    def evaluated(self, candidates: np.ndarray) -> np.ndarray:
        """Return the positions of the images on which all of these candidates were evaluated."""
        return np.flatnonzero(~np.isnan(self.probabilities[candidates]).any((0, 2)))


def choose(predictions: Predictions) -> int:
    """Return the index of the best candidate by accuracy or macro F1.

    Of the variants of a candidate the best is used (ties: by likelihood). Candidates are compared on the images that
    all of them have. Those whose score is within two standard errors of the best are undecided: with few labels most
    are. Of these the one with the highest likelihood after temperature scaling is chosen, which varies less than
    accuracy; with many labels accuracy decides. The standard error is that of the mean difference in correctness (over
    groups, if there are any); for macro F1, images are weighted by inverse class frequency.
    """
    return int(_chosen(predictions, np.ones((1, len(predictions.labels))))[0])


def score(predictions: Predictions, candidate: int, rows: np.ndarray | None = None) -> float:
    """Return a candidate's accuracy, or macro F1 over the classes that occur.

    Args:
        rows: positions of images; by default all on which it was evaluated.
    """
    rows = predictions.evaluated(np.array([candidate])) if rows is None else rows
    return float(_scores(predictions, np.ones((1, len(rows))), np.array([candidate]), rows)[0, 0])


def corrected_accuracy(predictions: Predictions) -> float:
    """Return the accuracy of the chosen candidate, corrected for the choice (BBC-CV, Tsamardinos et al. 2018).

    The best of several candidates owes part of its accuracy to chance. Images, or groups, are drawn with replacement,
    the choice is made on them, and the chosen candidate is evaluated on the images that were not drawn; the mean of
    1,000 repetitions is returned. With one candidate there is no choice, and the result is its accuracy.
    """
    common = predictions.common
    if len(predictions.names) == 1:
        return float(predictions.correct[0, common].mean())
    some = np.flatnonzero(~np.isnan(predictions.probabilities).all((0, 2)))
    bags = max(100, min(BAGS, DRAWS // len(some)))
    _, unit = np.unique(predictions.units[some], return_inverse=True)
    n = unit.max() + 1
    draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), bags)
    weights = np.zeros((bags, len(predictions.labels)))
    weights[:, some] = draws[:, unit]
    left = weights[:, common] == 0
    usable = left.any(1) & ~left.all(1)
    if not usable.any():
        return float(predictions.correct[choose(predictions), common].mean())
    chosen, left = _chosen(predictions, weights[usable]), left[usable]
    hits = (left * predictions.correct[chosen][:, common]).sum(1)
    return float((hits / left.sum(1)).mean())


def _chosen(predictions: Predictions, weights: np.ndarray) -> np.ndarray:
    """Return the index of the choice for each of B weightings of the images, `B x N`."""
    names = list(dict.fromkeys(predictions.names))
    variants = [np.flatnonzero(np.array(predictions.names) == name) for name in names]
    best = np.stack([_best(predictions, weights, v) for v in variants], 1)  # B x candidates
    every, common = np.arange(len(predictions.names)), predictions.common
    weights = weights[:, common]
    if len(names) == 1:
        return best[:, 0]
    scores = np.take_along_axis(_scores(predictions, weights, every, common), best, 1)
    top = np.take_along_axis(best, scores.argmax(1)[:, None], 1)[:, 0]
    errors = np.stack([_standard_errors(predictions, weights, common, top, b) for b in best.T], 1)
    likelihood = weights * _image_weights(predictions, common) @ predictions.calibrated[:, common].T
    likelihood = np.take_along_axis(likelihood, best, 1) / weights.sum(1, keepdims=True)
    undecided = scores.max(1, keepdims=True) - scores <= UNDECIDED * errors + TIE
    best_likelihood = np.where(undecided, likelihood, -np.inf).max(1, keepdims=True)
    first = (undecided & (likelihood >= best_likelihood - TIE)).argmax(1)  # the simplest of equal ones
    return np.take_along_axis(best, first[:, None], 1)[:, 0]


def _best(predictions: Predictions, weights: np.ndarray, variants: np.ndarray) -> np.ndarray:
    """Return the best variant of a candidate for each weighting, B."""
    if len(variants) == 1:
        return np.full(len(weights), variants[0])
    rows = predictions.evaluated(variants)
    weights = weights[:, rows]
    likelihood = weights @ predictions.log_likelihood[np.ix_(variants, rows)].T / weights.sum(1, keepdims=True)
    ranked = _scores(predictions, weights, variants, rows) + TIE * likelihood
    return variants[ranked.argmax(1)]


def _scores(predictions: Predictions, weights: np.ndarray, candidates: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the score of each candidate for each weighting of these images, `B x candidates`."""
    correct = predictions.correct[np.ix_(candidates, rows)]
    if not predictions.macro:
        return np.asarray(weights @ correct.T / weights.sum(1, keepdims=True))
    one_hot = np.eye(predictions.probabilities.shape[2])
    images = weights @ one_hot[predictions.labels[rows]]
    out = []
    for candidate, hits in zip(candidates, correct, strict=True):
        guesses = one_hot[predictions.predicted[candidate, rows]]
        both = images + weights @ guesses
        f1 = 2 * (weights @ (guesses * hits[:, None])) / np.maximum(both, 1e-12)
        out.append(f1.sum(1) / (both > 0).sum(1))
    return np.stack(out, 1)


def _image_weights(predictions: Predictions, rows: np.ndarray) -> np.ndarray:
    """Return the weights of these images: 1, or for macro F1 the inverse class frequency, with mean 1."""
    if not predictions.macro:
        return np.ones(len(rows))
    _, position, images = np.unique(predictions.labels[rows], return_inverse=True, return_counts=True)
    return np.asarray(len(rows) / len(images) / images[position])


def _standard_errors(
    predictions: Predictions, weights: np.ndarray, rows: np.ndarray, a: np.ndarray, b: np.ndarray
) -> np.ndarray:
    """Return the standard error of the mean difference in correctness of candidates a and b, for each weighting."""
    n, image_weight = weights.sum(1), _image_weights(predictions, rows)
    _, first, unit, sizes = np.unique(
        predictions.units[rows], return_index=True, return_inverse=True, return_counts=True
    )
    weights = weights[:, first]  # images of a group have the same
    units = weights.sum(1)
    out = np.zeros(len(weights))
    for one, other in {*zip(a.tolist(), b.tolist(), strict=True)}:
        difference = image_weight * (predictions.correct[one, rows] - predictions.correct[other, rows])
        sums, of_pair = np.bincount(unit, difference), (a == one) & (b == other)
        w = weights[of_pair]
        mean = w @ sums / n[of_pair]
        squares = w @ sums**2 - 2 * mean * (w @ (sums * sizes)) + mean**2 * (w @ sizes**2)
        g = units[of_pair]
        out[of_pair] = np.sqrt(squares.clip(0) * g / (g - 1).clip(1)) / n[of_pair]
    return out
