"""Metrics of features and of predictions."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslrun.evaluation import calibration
from sslrun.evaluation.intervals import LEVEL, MIN_GROUPS, effective_size, proportion_interval

TOP_5_CLASSES = 20  # with more, the top-5 accuracy is computed
SAMPLES, CHUNK = 2000, 100  # of the bootstrap, and how many at once
MANY_IMAGES = 10  # of every class: with fewer, the bootstrap is only approximate
COLLAPSED_SPREAD = 0.05  # where 1 is a uniform distribution on the sphere
COLLAPSED_RANK = 2.0
RANKED = 10  # images; the effective rank of n of them is at most n - 1, so that of fewer says nothing


def embedding_health(features: Tensor) -> dict[str, float]:
    """Compute metrics that show, without labels, whether an embedding has collapsed.

    Args:
        features: `N x D`.

    Returns:
        `feature_spread`: the mean standard deviation of the l2-normalized features times sqrt(D); 1 if they are
        uniform on the sphere, 0 if all are equal (Chen & He 2021). `effective_rank`: the exponential of the entropy of
        their singular values after centering (Roy & Vetterli 2007; RankMe, Garrido et al. 2023).
    """
    z = F.normalize(features.double(), dim=1)
    spread = float(z.std(0).mean() * math.sqrt(z.shape[1])) if len(z) > 1 else 0.0
    s = torch.linalg.svdvals(z - z.mean(0))
    p = s / s.sum().clamp(min=1e-12)
    entropy = -(p * (p + 1e-12).log()).sum()
    return {
        "feature_spread": spread,
        "effective_rank": float(entropy.exp()) if float(s.sum()) > 1e-6 else 1.0,
    }


def alignment_and_uniformity(features: Tensor, views: Tensor) -> dict[str, float]:
    """Compute how close the features of two views are, and how evenly features spread (Wang & Isola 2020, eq. 5, 6).

    Args:
        features: `N x D`, of images.
        views: `N x D`, of a view of each.

    Returns:
        `alignment`: mean squared distance of the two, l2-normalized; 0 if they are equal, 2 if unrelated. `uniformity`:
        logarithm of the mean of exp(-2 d^2) over all pairs of images; 0 if all are equal, about -4 if they are uniform.
    """
    x, y = F.normalize(features.double(), dim=1), F.normalize(views.double(), dim=1)
    uniformity = torch.pdist(x).square().mul(-2).exp().mean().log() if len(x) > 1 else torch.zeros(())
    return {"alignment": float((x - y).square().sum(1).mean()), "uniformity": float(uniformity)}


def has_collapsed(health: dict[str, float], images: int = RANKED) -> bool:
    """Return whether the metrics of `embedding_health` of this many images indicate a collapsed embedding."""
    low_rank = images >= RANKED and health["effective_rank"] < COLLAPSED_RANK
    return low_rank or health["feature_spread"] < COLLAPSED_SPREAD


def scored(
    probabilities: np.ndarray,
    labels: np.ndarray,
    class_names: list[str],
    temperature: float,
    groups: np.ndarray | None = None,
) -> dict[str, Any]:
    """Compute the metrics of `classification`, and those of the probabilities and their calibration.

    Args:
        probabilities: `N x classes`.
        labels: N.
        temperature: fitted on validation.
        groups: N names of groups of dependent images.

    Returns:
        Also `top5_accuracy` (with more than 20 classes), `nll` in nats, `ece` (15 bins), `reliability`, and the last
        three after temperature scaling, with the suffix `_calibrated`.
    """
    from sklearn.metrics import top_k_accuracy_score

    result: dict[str, Any] = {}
    for suffix, p in (("", probabilities), ("_calibrated", calibration.tempered(probabilities, temperature))):
        result["nll" + suffix] = calibration.log_loss(p, labels)
        result["ece" + suffix] = calibration.calibration_error(p, labels)
        result["reliability" + suffix] = calibration.reliability(p, labels)
    ids, many = range(len(class_names)), len(class_names) > TOP_5_CLASSES
    return {
        **classification(labels, probabilities.argmax(1), class_names, groups),
        **({"top5_accuracy": float(top_k_accuracy_score(labels, probabilities, k=5, labels=ids))} if many else {}),
        "temperature": temperature,
        **result,
    }


def classification(
    labels: np.ndarray, predicted: np.ndarray, class_names: list[str], groups: np.ndarray | None = None
) -> dict[str, Any]:
    """Compute accuracy, precision, recall and F1 (macro average and per class), and the confusion matrix.

    A class that is not in the labels has no recall and, if it is not predicted either, no F1; one that is not predicted
    has no precision. They are None. Macro averages count a class that occurs in labels or predictions; there, no
    precision counts as 0, as in scikit-learn's `precision_score`. The others equal `balanced_accuracy_score` and
    `f1_score`.

    Args:
        labels, predicted: N class indices; N is at least 1.
        groups: N names of groups of dependent images, which all intervals consider.

    Returns:
        `accuracy`, `precision_macro`, `balanced_accuracy` (the macro average of recall), `f1_macro`, `classes`,
        `confusion_matrix`, and 95 % CIs, None where there is none: `accuracy_interval`, see `proportion_interval`,
        `f1_macro_interval`, see `f1_interval`, and `low` and `high` of each class's precision and recall.
        `f1_macro_approximate` is whether a class has fewer than ten images. With groups also their number, `groups`,
        and `effective_images`, see `effective_size`.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    ids = list(range(len(class_names)))
    matrix = confusion_matrix(labels, predicted, labels=ids)
    precision, _, f1, _ = precision_recall_fscore_support(labels, predicted, labels=ids, zero_division=0)
    images, guesses, correct = matrix.sum(1), matrix.sum(0), labels == predicted
    rows = []
    for k, name in enumerate(class_names):
        row: dict[str, Any] = {"class": name}
        for metric, of_class in (("precision", predicted == k), ("recall", labels == k)):
            of_groups = None if groups is None else groups[of_class]
            low, high = proportion_interval(correct[of_class], of_groups) or (None, None)
            value = float(correct[of_class].mean()) if of_class.any() else None
            row |= {metric: value, f"{metric}_low": low, f"{metric}_high": high}
        known = images[k] + guesses[k] > 0
        rows.append(
            {**row, "f1": float(f1[k]) if known else None, "images": int(images[k]), "predicted": int(guesses[k])}
        )
    occurring = images + guesses > 0
    return {
        "accuracy": float(correct.mean()),
        "accuracy_interval": proportion_interval(correct, groups),
        **_grouped(correct, groups),
        "precision_macro": float(precision[occurring].mean()),
        "balanced_accuracy": float(np.mean([r["recall"] for r in rows if r["recall"] is not None])),
        "f1_macro": float(f1[occurring].mean()),
        "f1_macro_interval": f1_interval(labels, predicted, len(ids), groups),
        "f1_macro_approximate": bool((images[images > 0] < MANY_IMAGES).any()),
        "classes": rows,
        "confusion_matrix": matrix.tolist(),
    }


def _grouped(correct: np.ndarray, groups: np.ndarray | None) -> dict[str, Any]:
    if groups is None:
        return {}
    return {"groups": len(np.unique(groups)), "effective_images": effective_size(correct, groups)}


def f1_interval(
    labels: np.ndarray, predicted: np.ndarray, classes: int, groups: np.ndarray | None = None
) -> tuple[float, float] | None:
    """Return the 95 % bootstrap interval of the macro F1 (2,000 samples, percentiles).

    Images are drawn within each class; with groups, whole groups are drawn.

    Args:
        labels, predicted: N class indices.
        groups: N names.

    Returns:
        None if the samples do not differ, as when all predictions are correct, and for fewer than ten groups.
    """
    rng = np.random.default_rng(0)
    if groups is None:
        f1 = _f1_of_images(labels, predicted, classes, rng)
    elif len(np.unique(groups)) < MIN_GROUPS:
        return None
    else:
        f1 = _f1_of_groups(labels, predicted, classes, groups, rng)
    low, high = np.quantile(f1, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return (float(low), float(high)) if low < high else None


def _f1_of_images(labels: np.ndarray, predicted: np.ndarray, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Return the macro F1 of each bootstrap sample of images, stratified by class."""
    matrix = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    images, occurring = matrix.sum(1), matrix.sum(0) + matrix.sum(1) > 0
    correct, guesses = np.zeros((SAMPLES, classes)), np.zeros((SAMPLES, classes))
    for k in np.flatnonzero(images):  # drawing images of a class is drawing from its row
        drawn = rng.multinomial(images[k], matrix[k] / images[k], size=SAMPLES)
        correct[:, k] = drawn[:, k]
        guesses += drawn
    return _macro_f1(correct, images, guesses, occurring)


def _f1_of_groups(
    labels: np.ndarray, predicted: np.ndarray, classes: int, groups: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return the macro F1 of each bootstrap sample of groups."""
    names, group = np.unique(groups, return_inverse=True)
    n = len(names)
    correct, images, guesses = (np.zeros((n, classes)) for _ in range(3))
    np.add.at(images, (group, labels), 1)
    np.add.at(guesses, (group, predicted), 1)
    hits = labels == predicted
    np.add.at(correct, (group[hits], labels[hits]), 1)
    occurring = images.sum(0) + guesses.sum(0) > 0
    out = []
    for _ in range(SAMPLES // CHUNK):
        times = rng.multinomial(n, np.full(n, 1 / n), size=CHUNK).astype(np.float64)
        out.append(_macro_f1(times @ correct, times @ images, times @ guesses, occurring))
    return np.concatenate(out)


def _macro_f1(correct: np.ndarray, images: np.ndarray, guesses: np.ndarray, occurring: np.ndarray) -> np.ndarray:
    """Return the mean F1 of the occurring classes, from counts `samples x classes`."""
    f1: np.ndarray = 2 * correct / np.maximum(images + guesses, 1)
    mean: np.ndarray = f1[:, occurring].mean(1)
    return mean
