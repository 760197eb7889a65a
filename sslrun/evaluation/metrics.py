"""Metrics of features and of predictions."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslrun.evaluation import calibration
from sslrun.evaluation.intervals import wilson_interval

COLLAPSED_SPREAD = 0.05  # where 1 is a uniform distribution on the sphere
COLLAPSED_RANK = 2.0


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


def has_collapsed(health: dict[str, float]) -> bool:
    """Return whether the metrics of `embedding_health` indicate a collapsed embedding."""
    return health["feature_spread"] < COLLAPSED_SPREAD or health["effective_rank"] < COLLAPSED_RANK


def scored(probabilities: np.ndarray, labels: np.ndarray, class_names: list[str], temperature: float) -> dict[str, Any]:
    """Compute the metrics of `classification`, and those of the probabilities and their calibration.

    Args:
        probabilities: `N x classes`.
        labels: N.
        temperature: fitted on validation.

    Returns:
        Also `top5_accuracy` (with more than five classes), `nll` in nats, `ece` (15 bins), `reliability`, and the last
        three after temperature scaling, with the suffix `_calibrated`.
    """
    from sklearn.metrics import top_k_accuracy_score

    predicted = probabilities.argmax(1)
    result: dict[str, Any] = {}
    for suffix, p in (("", probabilities), ("_calibrated", calibration.tempered(probabilities, temperature))):
        result["nll" + suffix] = calibration.log_loss(p, labels)
        result["ece" + suffix] = calibration.calibration_error(p, labels)
        result["reliability" + suffix] = calibration.reliability(p, labels)
    ids, many = range(len(class_names)), len(class_names) > 5
    return {
        **classification(labels, predicted, class_names),
        **({"top5_accuracy": float(top_k_accuracy_score(labels, probabilities, k=5, labels=ids))} if many else {}),
        "temperature": temperature,
        **result,
    }


def classification(labels: Sequence[int] | np.ndarray, predicted: np.ndarray, class_names: list[str]) -> dict[str, Any]:
    """Compute accuracy, precision, recall and F1 (macro average and per class), and the confusion matrix.

    A class that is not in the labels has no recall and, if it is not predicted either, no precision and no F1: they
    are None, and not part of the macro averages. If it is predicted, its precision and F1 are 0. The averages equal
    those of scikit-learn's `precision_score`, `balanced_accuracy_score` and `f1_score`.

    Args:
        labels, predicted: N class indices; N is at least 1.

    Returns:
        Also `accuracy_interval`, and `recall_low` and `recall_high` of each class (95 % CIs, Wilson).
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    ids = list(range(len(class_names)))
    matrix = confusion_matrix(labels, predicted, labels=ids)
    columns = precision_recall_fscore_support(labels, predicted, labels=ids, zero_division=0)[:3]
    images, occurring = matrix.sum(1), matrix.sum(1) + matrix.sum(0) > 0
    precision, recall, f1 = (
        np.where(known, column, np.nan)
        for column, known in zip(columns, (occurring, images > 0, occurring), strict=True)
    )
    rows = []
    for k, name in enumerate(class_names):
        low, high = wilson_interval(int(matrix[k, k]), int(images[k])) if images[k] else (None, None)
        rows.append(
            {
                "class": name,
                "precision": _none_if_nan(precision[k]),
                "recall": _none_if_nan(recall[k]),
                "recall_low": low,
                "recall_high": high,
                "f1": _none_if_nan(f1[k]),
                "images": int(images[k]),
            }
        )
    correct, n = int(np.trace(matrix)), int(matrix.sum())
    return {
        "accuracy": correct / n,
        "accuracy_interval": wilson_interval(correct, n),
        "precision_macro": float(np.nanmean(precision)),
        "recall_macro": float(np.nanmean(recall)),
        "f1_macro": float(np.nanmean(f1)),
        "classes": rows,
        "confusion_matrix": matrix.tolist(),
    }


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
