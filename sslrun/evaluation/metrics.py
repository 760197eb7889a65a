"""Metrics of features and of predictions."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslrun.evaluation import calibration
from sslrun.evaluation.intervals import bootstrap_interval

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
        Also `accuracy_interval` (95 % CI, bootstrap), `top5_accuracy` (with more than five classes), `nll` in nats,
        `ece` (15 bins), `reliability`, and the last three after temperature scaling, with the suffix `_calibrated`.
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
        "accuracy_interval": bootstrap_interval(predicted == labels),
        **({"top5_accuracy": float(top_k_accuracy_score(labels, probabilities, k=5, labels=ids))} if many else {}),
        "temperature": temperature,
        **result,
    }


def classification(labels: Sequence[int] | np.ndarray, predicted: np.ndarray, class_names: list[str]) -> dict[str, Any]:
    """Compute accuracy, precision, recall and F1 (macro average and per class), and the confusion matrix."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    ids = list(range(len(class_names)))
    each = precision_recall_fscore_support(labels, predicted, labels=ids, zero_division=0)
    macro = precision_recall_fscore_support(labels, predicted, labels=ids, average="macro", zero_division=0)
    rows = zip(class_names, *(column.tolist() for column in each), strict=True)
    return {
        "accuracy": float((np.asarray(labels) == predicted).mean()),
        "precision_macro": float(macro[0]),
        "recall_macro": float(macro[1]),
        "f1_macro": float(macro[2]),
        "classes": [{"class": c, "precision": p, "recall": r, "f1": f, "images": int(n)} for c, p, r, f, n in rows],
        "confusion_matrix": confusion_matrix(labels, predicted, labels=ids).tolist(),
    }
