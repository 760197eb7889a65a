"""Logistic regression on frozen features: the linear probe, and the initialization of a finetuned head."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslrun.base.console import log
from sslrun.base.machine import one_thread
from sslrun.base.text import counted, percent
from sslrun.data.balance import Balance, class_priors, effective_number_weights, inverse_frequency_weights, log_priors
from sslrun.data.dataset import Dataset
from sslrun.data.groups import group_folds, groups_per_class
from sslrun.device import Device
from sslrun.evaluation.features import features as features_of
from sslrun.evaluation.features import map_features
from sslrun.evaluation.validation import SCORES, score_name
from sslrun.models.classifier import Classifier, knn_probabilities
from sslrun.models.encoder import Encoder, Pooling

C_VALUES = tuple(10.0**k for k in range(-4, 3))  # inverse regularization strength, as in scikit-learn
FOLDS = 5
SEARCHED = 5000  # maximum number of labeled images for the search of C
PROBED = 10_000  # maximum number of labeled and of validation images for the probe of a feature map
POOLINGS: tuple[Pooling, ...] = ("average", "grid")


def fit_head(
    classifier: Classifier,
    features: Tensor,
    labels: Tensor,
    val: tuple[Tensor, Tensor] | None,
    seed: int,
    inverse_regularization: float | None = None,
    groups: np.ndarray | None = None,
    balance: Balance = "none",
) -> float:
    """Set a classifier's head to the logistic regression of the labels on its features, and return C.

    Args: see `regression`.
    """
    classes = classifier.head.out_features
    weight, bias, best = regression(features, labels, val, seed, classes, inverse_regularization, groups, balance)
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
    groups: np.ndarray | None = None,
    balance: Balance = "none",
) -> tuple[Tensor, Tensor, float]:
    """Fit a logistic regression of labels on standardized features (L-BFGS).

    The inverse regularization strength C is chosen on validation data or, without it, by k-fold cross-validation. The
    search uses a random sample of at most 5,000 labeled images.

    Args:
        features: `N x D`.
        labels: N.
        val: features and labels for validation.
        classes: number of classes; one without labels is never predicted.
        inverse_regularization: C, if it is known already.
        groups: N names of groups that the folds do not divide.
        balance: `weights` and `sampling` weight the classes by effective numbers and by inverse frequency; `logit`
            subtracts the log priors from the bias, which is the same as adding them to the logits in the loss, since
            the bias is not regularized. C is then chosen by macro F1 instead of accuracy.

    Returns:
        Weight, `classes x D`, and bias, `classes`, for features that are not standardized, and C.
    """
    mean, std = features.mean(0), features.std(0, correction=0).clamp(min=1e-6)
    x = ((features - mean) / std).numpy()
    best = inverse_regularization or _best(_search(features, labels, val, seed, groups, balance))
    with _single_threaded():
        model = _regression(best, _class_weight(balance, labels)).fit(x, labels.numpy())
    coef, intercept = torch.from_numpy(model.coef_).double(), torch.from_numpy(model.intercept_).double()
    if len(coef) == 1:  # binary: scikit-learn has one logit z, which is split into -z/2 and z/2
        coef, intercept = torch.cat([-coef, coef]) / 2, torch.cat([-intercept, intercept]) / 2
    coef = coef / std.double()
    weight = torch.zeros(classes, features.shape[1])
    bias = torch.full((classes,), float(intercept.min()) - 10)
    rows = torch.from_numpy(model.classes_)
    weight[rows] = coef.float()
    bias[rows] = (intercept - coef @ mean.double()).float()
    if balance == "logit":
        bias -= log_priors(class_priors(labels, classes))
    return weight, bias, best


def better_pooling(
    encoder: Encoder, data: Dataset, val: Dataset | None, device: Device, seed: int, balance: Balance = "none"
) -> tuple[Pooling, dict[str, float], float]:
    """Choose the pooling whose features give the more accurate logistic regression.

    The search is that of `regression`, for the features of both. Ties in accuracy are broken by likelihood.

    Returns:
        The better pooling, the accuracy (with balancing: macro F1) by pooling, and the best C for the better one.
    """
    assert data.labels is not None
    sample = data.take(_sample(data.labels, SEARCHED, seed, data.groups))
    by_pooling: dict[Pooling, dict[float, tuple[float, float]]] = {}
    for pooling in POOLINGS:
        val_features = labeled_features(encoder, val, device, pooling) if val else None
        features, labels = labeled_features(encoder, sample, device, pooling)
        by_pooling[pooling] = _search(features, labels, val_features, seed, sample.groups, balance)
    scores = {p: max(by_c.values()) for p, by_c in by_pooling.items()}
    better = max(scores, key=lambda p: scores[p])
    text = ", ".join(f"{p} {percent(s[0])}" for p, s in scores.items())
    score = SCORES[score_name(balance)]
    log.info("Pooling: %s (%s of a logistic regression: %s)", better, score, text)
    return better, {p: round(s[0], 6) for p, s in scores.items()}, _best(by_pooling[better])


def map_probes(
    encoder: Encoder, data: Dataset, val: Dataset | None, test: Dataset, device: Device, seed: int, batch_size: int
) -> list[dict[str, Any]]:
    """Compute the test accuracy of a linear probe and of kNN for each feature map of the backbone.

    Args:
        data: labeled images for fitting; at most 10,000 are used.
        val: images for choosing the probe's C; at most 10,000 are used.

    Returns:
        For each map its `stage`, from 1, the number of its `features`, `probe_accuracy` and `knn_accuracy`.
    """
    data, val = data.take(_subset(len(data))), None if val is None else val.take(_subset(len(val)))
    assert data.labels is not None
    assert test.labels is not None
    classes, labels = len(test.class_names), test.labels.numpy()
    maps = map_features(encoder, data.images, device, batch_size)
    val_maps = [None] * len(maps) if val is None else map_features(encoder, val.images, device, batch_size)
    test_maps = map_features(encoder, test.images, device, batch_size)
    results = []
    for i, (x, xv, xt) in enumerate(zip(maps, val_maps, test_maps, strict=True)):
        val_features = None if val is None or val.labels is None or xv is None else (xv, val.labels)
        weight, bias, _ = regression(x, data.labels, val_features, seed, classes, groups=data.groups)
        by_probe = (xt @ weight.T + bias).argmax(1).numpy()
        by_knn = knn_probabilities(xt, x, data.labels, classes).argmax(1).numpy()
        accuracies = {
            "probe_accuracy": float((by_probe == labels).mean()),
            "knn_accuracy": float((by_knn == labels).mean()),
        }
        results.append({"stage": i + 1, "features": x.shape[1], **accuracies})
    return results


def _subset(n: int) -> np.ndarray:
    """Return indices of at most 10,000 of n images, drawn at random."""
    return np.sort(np.random.default_rng(0).permutation(n)[:PROBED])


def labeled_features(
    encoder: Encoder, data: Dataset, device: Device, pooling: Pooling | None = None
) -> tuple[Tensor, Tensor]:
    """Return the features of labeled images, `N x D`, and their labels, N; by default with the encoder's pooling."""
    assert data.labels is not None
    return features_of(encoder, data.images, device, pooling=pooling), data.labels


def _search(
    features: Tensor,
    labels: Tensor,
    val: tuple[Tensor, Tensor] | None,
    seed: int,
    groups: np.ndarray | None = None,
    balance: Balance = "none",
) -> dict[float, tuple[float, float]]:
    """Return accuracy (with balancing: macro F1) and log-likelihood on validation or in cross-validation, by C."""
    from sklearn.model_selection import GridSearchCV

    mean, std = features.mean(0), features.std(0, correction=0).clamp(min=1e-6)
    rows = _sample(labels, SEARCHED, seed, groups)
    sample = torch.from_numpy(rows)
    x, y = ((features[sample] - mean) / std).numpy(), labels[sample].numpy()
    if val is None:
        x, y, splits = _cross_validation(x, y, seed, None if groups is None else groups[rows])
    else:
        splits = [(np.arange(len(x)), np.arange(len(x), len(x) + len(val[0])))]
        x, y = np.concatenate([x, ((val[0] - mean) / std).numpy()]), np.concatenate([y, val[1].numpy()])
    if not splits:
        return {1.0: (0.0, 0.0)}
    grid = {"C": list(C_VALUES)}
    model, scores = _regression(1.0, _class_weight(balance, labels)), partial(_scores, balance, labels)
    search = GridSearchCV(model, grid, scoring=scores, cv=splits, refit=False, error_score="raise")
    with _single_threaded():
        results = search.fit(x, y).cv_results_
    columns = zip(C_VALUES, results["mean_test_score"], results["mean_test_log_likelihood"], strict=True)
    return {c: (float(score), float(likelihood)) for c, score, likelihood in columns}


def _best(scores: dict[float, tuple[float, float]]) -> float:
    return max(scores, key=lambda c: scores[c])


def _sample(labels: Tensor, size: int, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Return indices of a random sample of this size, extended by two images, or two groups, of every class."""
    if len(labels) <= size:
        return np.arange(len(labels))
    order = np.random.default_rng(seed).permutation(len(labels))
    of_class = [order[labels.numpy()[order] == k] for k in labels.unique()]
    if groups is not None:  # one image of each group
        of_class = [rows[np.sort(np.unique(groups[rows], return_index=True)[1])] for rows in of_class]
    return np.array(list(dict.fromkeys([*order[:size], *np.concatenate([rows[:2] for rows in of_class])])))


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Use one BLAS thread, and ignore warnings about convergence."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(), one_thread("blas"):
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def _regression(c: float, class_weight: dict[int, float] | None) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=c, max_iter=300, tol=1e-3, class_weight=class_weight)


def _class_weight(balance: Balance, labels: Tensor) -> dict[int, float] | None:
    if balance not in ("weights", "sampling"):
        return None
    weights = effective_number_weights if balance == "weights" else inverse_frequency_weights
    return dict(enumerate(weights(labels, int(labels.max()) + 1).tolist()))


def _scores(balance: Balance, labels: Tensor, model: Any, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Return accuracy (with balancing: macro F1) and, to break ties, log-likelihood.

    A class without training labels has probability 0.

    Args:
        labels: of all training images.
        model: a fitted logistic regression, without logit adjustment.
        x, y: features and labels to score it on.
    """
    from sklearn.metrics import f1_score

    p = model.predict_proba(x)
    if balance == "logit":
        p /= class_priors(labels, int(labels.max()) + 1).numpy()[model.classes_]
        p /= p.sum(1, keepdims=True)
    column = {k: i for i, k in enumerate(model.classes_)}
    true = np.array([p[i, column[k]] if k in column else 0.0 for i, k in enumerate(y)])
    predicted = model.classes_[p.argmax(1)]
    if balance == "none":
        score = float((predicted == y).mean())
    else:
        score = float(f1_score(y, predicted, average="macro", zero_division=0))
    return {"score": score, "log_likelihood": float(np.log(true.clip(1e-9)).mean())}


def _cross_validation(
    x: np.ndarray, y: np.ndarray, seed: int, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Return features and labels of the classes with at least two images, or groups, and stratified folds of them.

    There are no folds if fewer than two classes are left.
    """
    from sklearn.model_selection import StratifiedKFold

    values, counts = np.unique(y, return_counts=True)
    if groups is not None:
        counts = np.array([*groups_per_class(y, groups).values()])
    enough = np.isin(y, values[counts > 1])  # a single image cannot be in both training and validation
    x, y = x[enough], y[enough]
    if len(np.unique(y)) < 2:
        return x, y, []
    n = min(FOLDS, int(counts[counts > 1].min()))
    if groups is None:
        return x, y, list(StratifiedKFold(n, shuffle=True, random_state=seed).split(x, y))
    splits = [(np.setdiff1d(np.arange(len(y)), rows), rows) for rows in group_folds(y, groups[enough], n, seed)]
    return x, y, [(train, val) for train, val in splits if len(np.unique(y[train])) == len(np.unique(y))]
