"""Logistic regression on frozen features: the linear probe, and the initialization of a finetuned head."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sslrun.base.machine import one_thread
from sslrun.data.balance import Balance, class_priors, effective_number_weights, inverse_frequency_weights, log_priors
from sslrun.data.dataset import Dataset
from sslrun.data.labeled import Labeled
from sslrun.data.labels import Fold
from sslrun.device import Device
from sslrun.evaluation.selection import Predictions, choose
from sslrun.models.classifier import knn_probabilities
from sslrun.models.encoder import Encoder, Pooling
from sslrun.models.features import map_features

C_VALUES = tuple(10.0**k for k in range(-4, 3))  # inverse regularization strength, as in scikit-learn
DEFAULT_C = 1.0  # where it cannot be chosen
EXACT = 500  # images up to which regressions are cheap to solve one by one and more exactly
PROBED = 10_000  # maximum number of training images of the probe of a feature map
SEARCHED = 5000  # maximum number of training images in the search of C
POOLINGS: tuple[Pooling, ...] = ("average", "grid")


def regression(
    features: Tensor, labels: Tensor, classes: int, c: float, balance: Balance = "none"
) -> tuple[Tensor, Tensor]:
    """Fit a logistic regression of labels on standardized features (L-BFGS).

    Args:
        features: `N x D`.
        labels: N.
        classes: number of classes; one without labels is never predicted.
        c: inverse regularization strength.
        balance: `weights` and `sampling` weight the classes by effective numbers and by inverse frequency; `logit`
            subtracts the log priors from the bias, which is the same as adding them to the logits in the loss, since
            the bias is not regularized.

    Returns:
        Weight, `classes x D`, and bias, `classes`, for features that are not standardized.
    """
    return next(_fitted(features, labels, classes, [c], balance))


class FoldRegression(NamedTuple):
    """The regressions of a fold with every C of `C_VALUES`, as a job: NumPy arrays only.

    Attributes:
        features, labels: of the training images, `N x D` and N.
        queries: features of the validation images.
    """

    features: np.ndarray
    labels: np.ndarray
    queries: np.ndarray
    classes: int
    balance: Balance

    def probabilities(self) -> np.ndarray:
        """Return the probabilities of the validation images, `C x queries x classes`."""
        x, y = torch.from_numpy(self.features), torch.from_numpy(self.labels)
        queries = torch.from_numpy(self.queries)
        fitted = _fitted(x, y, self.classes, C_VALUES, self.balance)
        return np.stack([(queries @ weight.T + bias).softmax(1).numpy() for weight, bias in fitted])


def fold_regressions(
    features: Tensor, labels: Tensor, folds: Sequence[Fold], classes: int, balance: Balance = "none"
) -> list[FoldRegression]:
    """Return the regressions of each fold; at most 5,000 training images, drawn at random, are used.

    Args: see `regression`.
    """
    x, y = features.numpy(), labels.numpy()
    trained = [fold.train[_sample(labels[torch.from_numpy(fold.train)], SEARCHED)] for fold in folds]
    return [FoldRegression(x[t], y[t], x[f.val], classes, balance) for t, f in zip(trained, folds, strict=True)]


def assembled(results: Sequence[np.ndarray], folds: Sequence[Fold], images: int, classes: int) -> np.ndarray:
    """Return the probabilities of all folds, `C x images x classes`; NaN for images that are in no validation part."""
    out = np.full((len(C_VALUES), images, classes), np.nan, dtype=np.float32)
    for fold, p in zip(folds, results, strict=True):
        out[:, fold.val] = p
    return out


def regressions(
    features: Tensor, labels: Tensor, folds: Sequence[Fold], classes: int, balance: Balance = "none"
) -> np.ndarray:
    """Compute the probabilities of logistic regressions with every C of `C_VALUES` on the validation images of folds.

    Args: see `regression`.

    Returns: see `assembled`.
    """
    results = [job.probabilities() for job in fold_regressions(features, labels, folds, classes, balance)]
    return assembled(results, folds, len(labels), classes)


def _fitted(
    features: Tensor, labels: Tensor, classes: int, c_values: Sequence[float], balance: Balance
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield weight and bias of the regression with each C, in ascending order."""
    mean, std = features.mean(0).double(), features.std(0, correction=0).clamp(min=1e-6).double()
    x = (features.double() - mean) / std
    basis = _span(x)
    x = (x if basis is None else x @ basis).float()
    model = _model(balance, labels)
    for c in c_values:
        with _single_threaded():
            model.set_params(C=c).fit(x.numpy(), labels.numpy())
        coef, intercept = torch.from_numpy(model.coef_).double(), torch.from_numpy(model.intercept_).double()
        if len(coef) == 1:  # binary: scikit-learn has one logit z, which is split into -z/2 and z/2
            coef, intercept = torch.cat([-coef, coef]) / 2, torch.cat([-intercept, intercept]) / 2
        coef = (coef if basis is None else coef @ basis.T) / std
        weight = torch.zeros(classes, features.shape[1])
        bias = torch.full((classes,), float(intercept.min()) - 10)
        rows = torch.from_numpy(model.classes_)
        weight[rows] = coef.float()
        bias[rows] = (intercept - coef @ mean).float()
        if balance == "logit":
            bias -= log_priors(class_priors(labels, classes))
        yield weight, bias


def _span(x: Tensor) -> Tensor | None:
    """Return an orthonormal basis of the span of N images with more than N features, `D x rank`, or None.

    The weights of a regularized regression lie in this span, and their norm does not depend on the basis: with 50
    images of 3,000 features the regression has 50 weights a class instead of 3,000.
    """
    if len(x) >= x.shape[1]:
        return None
    with _single_threaded():  # NumPy, whose threads it limits: the last digits depend on their number
        values, vectors = np.linalg.eigh(x.numpy() @ x.numpy().T)  # quicker than a singular value decomposition of x
        if values[-1] <= 0:  # all images are equal
            return None
        kept = values > 1e-9 * values[-1]
        return torch.from_numpy(x.numpy().T @ (vectors[:, kept] / np.sqrt(values[kept])))


def map_probes(
    encoder: Encoder, labeled: Labeled, folds: Sequence[Fold], test: Dataset, device: Device, batch_size: int | None
) -> list[dict[str, Any]]:
    """Compute the test accuracy of a linear probe and of kNN for each feature map of the backbone.

    Args:
        labeled: labeled images; at most 10,000 of the budget are used for the final fit.
        folds: of `labeled.every`, to choose the probe's C; without any, C is 1.

    Returns:
        For each map its `stage`, from 1, the number of its `features`, `probe_accuracy` and `knn_accuracy`.
    """
    data = labeled.every
    assert data.labels is not None
    assert test.labels is not None
    classes, labels = len(test.class_names), test.labels.numpy()
    rows = torch.from_numpy(_sample(data.labels[: len(labeled.budget)], PROBED))
    maps = map_features(encoder, data.images, device, batch_size)
    test_maps = map_features(encoder, test.images, device, batch_size)
    results = []
    for i, (x, xt) in enumerate(zip(maps, test_maps, strict=True)):
        bank, targets = x[rows], data.labels[rows]
        weight, bias = regression(bank, targets, classes, best_c(x, data.labels, folds, classes))
        by_probe = (xt @ weight.T + bias).argmax(1).numpy()
        by_knn = knn_probabilities(xt, bank, targets, classes).argmax(1).numpy()
        accuracies = {
            "probe_accuracy": float((by_probe == labels).mean()),
            "knn_accuracy": float((by_knn == labels).mean()),
        }
        results.append({"stage": i + 1, "features": x.shape[1], **accuracies})
    return results


def best_c(features: Tensor, labels: Tensor, folds: Sequence[Fold], classes: int) -> float:
    """Return the C of the most accurate logistic regression on the validation images of folds; without any, 1."""
    if not folds:
        return DEFAULT_C
    probabilities = regressions(features, labels, folds, classes)
    return C_VALUES[choose(Predictions(["probe"] * len(C_VALUES), probabilities, labels.numpy()))]


def _sample(labels: Tensor, size: int) -> np.ndarray:
    """Return indices of a random sample of this size, extended by an image of every class."""
    if len(labels) <= size:
        return np.arange(len(labels))
    order = np.random.default_rng(0).permutation(len(labels))
    first = np.unique(labels.numpy()[order], return_index=True)[1]
    return np.sort(np.unique([*order[:size], *order[first]]))


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Use one BLAS thread, and ignore warnings about convergence and about many classes with few labels each."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(), one_thread("blas"):
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", message="The number of unique classes")
        yield


def _model(balance: Balance, labels: Tensor) -> Any:
    """Return a logistic regression; with many images it stops earlier, and starts from the weights of the C before."""
    from sklearn.linear_model import LogisticRegression

    many, class_weight = len(labels) > EXACT, None
    if balance in ("weights", "sampling"):
        weights = effective_number_weights if balance == "weights" else inverse_frequency_weights
        class_weight = dict(enumerate(weights(labels, int(labels.max()) + 1).tolist()))
    return LogisticRegression(max_iter=300, tol=1e-3 if many else 1e-4, warm_start=many, class_weight=class_weight)
