"""Logistic regression on frozen features: the linear probe, and the start of a finetuned head."""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslrun.classifier import Classifier
from sslrun.console import log

STRENGTHS = tuple(10.0**k for k in range(-4, 3))  # C of scikit-learn, the inverse of l2
FOLDS = 5
SEARCHED = 5000  # at most so many of the labelled pictures take part in the search for C


def fit_head(
    classifier: Classifier, features: Tensor, labels: Tensor, val: tuple[Tensor, Tensor] | None, seed: int
) -> float:
    """Set a classifier's head to the logistic regression of the labels on its features (L-BFGS).

    The l2 strength is the one that is best on validation; without validation, the best in cross-validation on the
    labelled pictures themselves; of more than 5,000 labelled pictures so many, drawn at random, serve for this search.

    Args:
        features: `N x D`, with `labels`, N.
        val: the same of validation.

    Returns:
        The chosen C.
    """
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    mean, std = features.mean(0), features.std(0, correction=0).clamp(min=1e-6)
    x, y = ((features - mean) / std).numpy(), labels.numpy()
    with warnings.catch_warnings(), threadpool_limits(1, "blas"):  # more threads wait for each other and for torch's
        warnings.simplefilter("ignore", ConvergenceWarning)
        some = np.random.default_rng(seed).permutation(len(y))[:SEARCHED] if len(y) > SEARCHED else slice(None)
        if val is not None:
            xv = ((val[0] - mean) / std).numpy()
            scores = {c: _score(x[some], y[some], xv, val[1].numpy(), c) for c in STRENGTHS}
        else:
            scores = _cross_validated(x[some], y[some], seed)
        best = max(scores, key=lambda c: scores[c])
        model = _regression(best).fit(x, y)
    log.info("Logistic regression on %d labels: C=%g of %g to %g", len(y), best, STRENGTHS[0], STRENGTHS[-1])
    weight, bias = torch.from_numpy(model.coef_).double(), torch.from_numpy(model.intercept_).double()
    if len(weight) == 1:  # two classes: one logit z stands for -z/2 and z/2
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    weight = weight / std.double()
    rows = torch.from_numpy(model.classes_)
    with torch.no_grad():
        classifier.head.weight.zero_()
        classifier.head.bias.fill_(float(bias.min()) - 10)  # a class without a label is never predicted
        classifier.head.weight[rows] = weight.to(classifier.head.weight)
        classifier.head.bias[rows] = (bias - weight @ mean.double()).to(classifier.head.bias)
    return best


def _regression(c: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=c, max_iter=300, tol=1e-3)


def _score(x: np.ndarray, y: np.ndarray, xv: np.ndarray, yv: np.ndarray, c: float) -> tuple[float, float]:
    """Return accuracy and, to break ties, log-likelihood."""
    model = _regression(c).fit(x, y)
    p = model.predict_proba(xv)
    column = {k: i for i, k in enumerate(model.classes_)}
    true = np.array([p[i, column[k]] if k in column else 0.0 for i, k in enumerate(yv)])
    return float((model.classes_[p.argmax(1)] == yv).mean()), float(np.log(true.clip(1e-9)).mean())


def _cross_validated(x: np.ndarray, y: np.ndarray, seed: int) -> dict[float, tuple[float, float]]:
    from sklearn.model_selection import StratifiedKFold

    values, counts = np.unique(y, return_counts=True)
    often = np.isin(y, values[counts > 1])  # a class with one picture cannot be held out
    x, y = x[often], y[often]
    if len(np.unique(y)) < 2:
        return {1.0: (0.0, 0.0)}
    folds = min(FOLDS, int(counts[counts > 1].min()))
    parts = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, y))
    scores = {c: np.mean([_score(x[a], y[a], x[b], y[b], c) for a, b in parts], axis=0) for c in STRENGTHS}
    return {c: (float(s[0]), float(s[1])) for c, s in scores.items()}
