"""Logistic regression on frozen features: the linear probe, and the start of a finetuned head."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslrun.base.console import log
from sslrun.base.machine import one_thread
from sslrun.base.text import counted, percent
from sslrun.data.dataset import Dataset
from sslrun.device import Device
from sslrun.evaluation.features import features as features_of
from sslrun.evaluation.features import map_features
from sslrun.models.classifier import Classifier, knn_probabilities
from sslrun.models.encoder import Encoder, Pooling

C_VALUES = tuple(10.0**k for k in range(-4, 3))  # C of scikit-learn, the inverse of l2
FOLDS = 5
SEARCHED = 5000  # at most so many of the labeled pictures take part in the search for C
PROBED = 10_000  # labeled images and images of validation, at most, of a map's probe
POOLINGS: tuple[Pooling, ...] = ("average", "grid")


def fit_head(
    classifier: Classifier,
    features: Tensor,
    labels: Tensor,
    val: tuple[Tensor, Tensor] | None,
    seed: int,
    inverse_regularization: float | None = None,
) -> float:
    """Set a classifier's head to the logistic regression of the labels on its features.

    Args, returns: as of `regression`.
    """
    weight, bias, best = regression(features, labels, val, seed, classifier.head.out_features, inverse_regularization)
    log.info(
        "Logistic regression on %s: C=%g of %g to %g", counted(len(labels), "label"), best, C_VALUES[0], C_VALUES[-1]
    )
    with torch.no_grad():
        classifier.head.weight.copy_(weight)
        classifier.head.bias.copy_(bias)
    return best


def regression(
    features: Tensor,
    labels: Tensor,
    val: tuple[Tensor, Tensor] | None,
    seed: int,
    classes: int,
    inverse_regularization: float | None = None,
) -> tuple[Tensor, Tensor, float]:
    """Return the logistic regression of labels on features (L-BFGS), by standardised features.

    The l2 strength is the one that is best on validation; without validation, the best in cross-validation on the
    labeled pictures themselves; of more than 5,000 labeled pictures so many, drawn at random, serve for this search.

    Args:
        features: `N x D`, with `labels`, N.
        val: the same of validation.
        classes: how many there are; one without a label is never predicted.
        inverse_regularization: C, if it was searched for before.

    Returns:
        Weight, `classes x D`, and bias, `classes`, for the features as they are, and the chosen C.
    """
    mean, std = features.mean(0), features.std(0, correction=0).clamp(min=1e-6)
    x = ((features - mean) / std).numpy()
    best = inverse_regularization or _best(_searched(features, labels, val, seed))
    with _quiet_and_alone():
        model = _regression(best).fit(x, labels.numpy())
    coef, base = torch.from_numpy(model.coef_).double(), torch.from_numpy(model.intercept_).double()
    if len(coef) == 1:  # two classes: one logit z stands for -z/2 and z/2
        coef, base = torch.cat([-coef, coef]) / 2, torch.cat([-base, base]) / 2
    coef = coef / std.double()
    weight = torch.zeros(classes, features.shape[1])
    bias = torch.full((classes,), float(base.min()) - 10)
    rows = torch.from_numpy(model.classes_)
    weight[rows] = coef.float()
    bias[rows] = (base - coef @ mean.double()).float()
    return weight, bias, best


def better_pooling(
    encoder: Encoder, data: Dataset, val: Dataset | None, device: Device, seed: int
) -> tuple[Pooling, dict[str, float], float]:
    """Find the pooling whose features a logistic regression does better with.

    The search is that of `regression`, with the features of both. Of equal accuracy the one with the higher likelihood
    is better.

    Returns:
        The better one, the accuracy of both, and the C that is best with the better one.
    """
    assert data.labels is not None
    some = data.take(_some(data.labels, SEARCHED, seed))
    by_pooling: dict[Pooling, dict[float, tuple[float, float]]] = {}
    for pooling in POOLINGS:
        val_features = labeled_features(encoder, val, device, pooling) if val else None
        by_pooling[pooling] = _searched(*labeled_features(encoder, some, device, pooling), val_features, seed)
    scores = {r: max(by_c.values()) for r, by_c in by_pooling.items()}
    better = max(scores, key=lambda r: scores[r])
    text = ", ".join(f"{percent(s[0])} with {r}" for r, s in scores.items())
    log.info("The head sees the %s: held out, a logistic regression is right in %s.", better, text)
    return better, {r: round(s[0], 6) for r, s in scores.items()}, _best(by_pooling[better])


def map_probes(
    encoder: Encoder, data: Dataset, val: Dataset | None, test: Dataset, device: Device, seed: int, batch_size: int
) -> list[dict[str, Any]]:
    """Return the accuracy on test of a linear probe and of nearest neighbours on each map of the backbone.

    Args:
        data: labeled images that both are fitted on, 10,000 at most.
        val: by which the probe's C is chosen, 10,000 images at most.

    Returns:
        For every map `stage`, from 1, the number of its `features`, `probe_accuracy` and `knn_accuracy`.
    """
    data, val = data.take(_drawn(len(data))), None if val is None else val.take(_drawn(len(val)))
    assert data.labels is not None
    assert test.labels is not None
    classes, labels = len(test.class_names), test.labels.numpy()
    maps = map_features(encoder, data.images, device, batch_size)
    val_maps = [None] * len(maps) if val is None else map_features(encoder, val.images, device, batch_size)
    test_maps = map_features(encoder, test.images, device, batch_size)
    results = []
    for i, (x, xv, xt) in enumerate(zip(maps, val_maps, test_maps, strict=True)):
        val_features = None if val is None or val.labels is None or xv is None else (xv, val.labels)
        weight, bias, _ = regression(x, data.labels, val_features, seed, classes)
        probed = (xt @ weight.T + bias).argmax(1).numpy()
        nearest = knn_probabilities(xt, x, data.labels, classes).argmax(1).numpy()
        accuracies = {
            "probe_accuracy": float((probed == labels).mean()),
            "knn_accuracy": float((nearest == labels).mean()),
        }
        results.append({"stage": i + 1, "features": x.shape[1], **accuracies})
    return results


def _drawn(n: int) -> np.ndarray:
    """Return positions of at most 10,000 of n images, drawn at random."""
    return np.sort(np.random.default_rng(0).permutation(n)[:PROBED])


def labeled_features(
    encoder: Encoder, data: Dataset, device: Device, pooling: Pooling | None = None
) -> tuple[Tensor, Tensor]:
    """Return the features of labeled pictures, `N x D`, and their labels, N; by default with the encoder's pooling."""
    assert data.labels is not None
    return features_of(encoder, data.images, device, pooling=pooling), data.labels


def _searched(
    features: Tensor, labels: Tensor, val: tuple[Tensor, Tensor] | None, seed: int
) -> dict[float, tuple[float, float]]:
    """Return accuracy and log-likelihood on what is held out, by C."""
    from sklearn.model_selection import GridSearchCV

    mean, std = features.mean(0), features.std(0, correction=0).clamp(min=1e-6)
    some = torch.from_numpy(_some(labels, SEARCHED, seed))
    x, y = ((features[some] - mean) / std).numpy(), labels[some].numpy()
    if val is None:
        x, y, splits = _cross_validation(x, y, seed)
    else:
        splits = [(np.arange(len(x)), np.arange(len(x), len(x) + len(val[0])))]
        x, y = np.concatenate([x, ((val[0] - mean) / std).numpy()]), np.concatenate([y, val[1].numpy()])
    if not splits:
        return {1.0: (0.0, 0.0)}
    grid = {"C": list(C_VALUES)}
    search = GridSearchCV(_regression(1.0), grid, scoring=_scores, cv=splits, refit=False, error_score="raise")
    with _quiet_and_alone():
        results = search.fit(x, y).cv_results_
    columns = zip(C_VALUES, results["mean_test_accuracy"], results["mean_test_log_likelihood"], strict=True)
    return {c: (float(accuracy), float(likelihood)) for c, accuracy, likelihood in columns}


def _best(scores: dict[float, tuple[float, float]]) -> float:
    return max(scores, key=lambda c: scores[c])


def _some(labels: Tensor, most: int, seed: int) -> np.ndarray:
    """Return positions of at most so many pictures, drawn at random, and of two of every class beyond them."""
    if len(labels) <= most:
        return np.arange(len(labels))
    order = np.random.default_rng(seed).permutation(len(labels))
    of_class = [order[labels.numpy()[order] == k][:2] for k in labels.unique()]
    return np.array(list(dict.fromkeys([*order[:most], *np.concatenate(of_class)])))


@contextmanager
def _quiet_and_alone() -> Iterator[None]:
    """Say nothing of fits that did not converge, and use one thread."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(), one_thread("blas"):
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def _regression(c: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=c, max_iter=300, tol=1e-3)


def _scores(model: Any, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Return accuracy and, to break ties, log-likelihood; a class that was not seen in training has probability 0."""
    p = model.predict_proba(x)
    column = {k: i for i, k in enumerate(model.classes_)}
    true = np.array([p[i, column[k]] if k in column else 0.0 for i, k in enumerate(y)])
    accuracy = float((model.classes_[p.argmax(1)] == y).mean())
    return {"accuracy": accuracy, "log_likelihood": float(np.log(true.clip(1e-9)).mean())}


def _cross_validation(
    x: np.ndarray, y: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Return what can be held out, and its folds; none of fewer than two classes that have two images."""
    from sklearn.model_selection import StratifiedKFold

    values, counts = np.unique(y, return_counts=True)
    often = np.isin(y, values[counts > 1])  # a class with one image cannot be held out
    x, y = x[often], y[often]
    if len(np.unique(y)) < 2:
        return x, y, []
    folds = StratifiedKFold(min(FOLDS, int(counts[counts > 1].min())), shuffle=True, random_state=seed)
    return x, y, list(folds.split(x, y))
