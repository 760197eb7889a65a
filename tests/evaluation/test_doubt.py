"""Confident learning, compared with cleanlab and with labels that are known to be wrong."""

import numpy as np
import pytest

from sslrun.evaluation.doubt import doubtful


def predictions(seed: int, n: int = 400, classes: int = 4, flipped: float = 0.1) -> tuple[np.ndarray, ...]:
    """Return probabilities, labels of which some are wrong, and which."""
    rng = np.random.default_rng(seed)
    true = rng.choice(classes, n, p=rng.dirichlet(np.full(classes, 3.0)))
    logits = rng.normal(0, 1, (n, classes)) + 2.5 * np.eye(classes)[true]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    wrong = rng.random(n) < flipped
    labels = np.where(wrong, (true + rng.integers(1, classes, n)) % classes, true)
    return p, labels, wrong


@pytest.mark.parametrize("seed", range(8))
def test_the_same_labels_as_cleanlab_in_the_same_order(seed: int) -> None:
    filters = pytest.importorskip("cleanlab.filter")
    p, labels, _ = predictions(seed)
    expected = filters.find_label_issues(
        labels, p, filter_by="confident_learning", return_indices_ranked_by="self_confidence", n_jobs=1
    )
    assert doubtful(p, labels)[0].tolist() == expected.tolist()


def test_wrong_labels_are_found_and_the_other_class_is_named() -> None:
    p, labels, wrong = predictions(0, 2000, flipped=0.05)
    found, seems = doubtful(p, labels)
    assert wrong[found[:50]].mean() > 0.9
    assert (seems != labels[found]).all()
    assert (p[found, labels[found]] == np.sort(p[found, labels[found]])).all()


def test_labels_that_fit_are_not_doubtful_and_classes_without_labels_do_no_harm() -> None:
    p = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.6, 0.4, 0.0]])
    assert doubtful(p, np.array([0, 1, 0]))[0].size == 0
    found, seems = doubtful(np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.95, 0.05, 0.0]]), np.array([0, 1, 1]))
    assert (found.tolist(), seems.tolist()) == ([2], [0])
