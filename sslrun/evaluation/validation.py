"""Metrics computed during training."""

from collections.abc import Mapping

import numpy as np
import torch

from sslrun.augment import Augment, Rng
from sslrun.base.console import log
from sslrun.base.text import counted, interval, percent
from sslrun.data.dataset import Dataset
from sslrun.data.groups import groups_per_class
from sslrun.data.images import Images
from sslrun.data.labeled import Labeled
from sslrun.data.labels import counts
from sslrun.device import Device
from sslrun.evaluation import calibration
from sslrun.evaluation.intervals import wilson_interval
from sslrun.evaluation.metrics import alignment_and_uniformity, embedding_health, has_collapsed
from sslrun.models.classifier import Classifier, KNNClassifier, knn_probabilities
from sslrun.models.encoder import Encoder
from sslrun.models.features import features, probabilities

SCORES = {"val/accuracy": "accuracy", "val/f1_macro": "macro F1"}  # by which classifiers are chosen
# Of the views whose features are compared with those of the images; the same for every task.
HEALTH_VIEWS = Augment(
    crop_scale=[0.5, 1.0], crop_ratio=[0.75, 1.333], degrees=0.0, horizontal_flip=False,
    color_jitter=[0.2, 0.2, 0.2, 0.05], jitter_probability=0.8, grayscale=0.0, blur=0.0, probability=1.0,
)  # fmt: skip
HEALTH_IMAGES, KNN_BANK, KNN_QUERIES = 1024, 5000, 2000


KNN_FRACTION = 0.2  # of the training images, at most, that are queries
FEWEST_QUERIES = 10  # with fewer, the accuracy would say nothing


def knn_images(data: Dataset, given: Dataset | None) -> tuple[Dataset, Dataset] | None:
    """Draw the bank and the queries of the kNN accuracy of a pretraining.

    None without labels of two classes, or with fewer than 10 queries.

    Args:
        data: training images; at most 5,000 are the bank.
        given: a given val/; at most 2,000 of it are the queries. Without one, up to a fifth of the training images are;
            no image is on both sides, and no group.
    """
    if data.labels is None or len(data.class_names) < 2:
        return None
    if given is not None:
        enough = given.labels is not None and len(given) >= FEWEST_QUERIES
        return (_drawn(data, KNN_BANK), _drawn(given, KNN_QUERIES)) if enough else None
    units = np.arange(len(data)) if data.groups is None else np.unique(data.groups, return_inverse=True)[1]
    rank = _order(units.max() + 1)[units]
    order = rank.argsort(kind="stable")
    n = min(KNN_QUERIES, round(KNN_FRACTION * len(data)))
    queries = order[:n]
    bank = order[rank[order] > rank[queries].max(initial=-1)]
    return (
        (_drawn(data.take(np.sort(bank)), KNN_BANK), data.take(np.sort(queries)))
        if n >= FEWEST_QUERIES and len(bank)
        else None
    )


def _drawn(data: Dataset, most: int) -> Dataset:
    """Return at most this many images, drawn at random, since images may be listed by class."""
    return data.take(np.sort(_order(len(data))[:most]))


def _order(n: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(n)


def evaluated_images(images: Images, knn: tuple[Dataset, Dataset] | None) -> int:
    """Return how many images `encoder_metrics` passes through the encoder."""
    return 2 * len(range(len(images))[_of_health(images)]) + sum(map(len, knn or ()))


def _of_health(images: Images) -> slice:
    return slice(None, None, max(1, len(images) // HEALTH_IMAGES))


def encoder_metrics(
    encoder: Encoder, images: Images, knn: tuple[Dataset, Dataset] | None, device: Device
) -> dict[str, float]:
    """Compute the metrics of an encoder during pretraining; log a warning if the embedding has collapsed.

    Args:
        images: images of the pretraining; about 1,024 of them are used for `embedding_health`.
        knn: bank and queries of a kNN classifier, see `knn_images`. Its accuracy is only shown.

    Returns:
        `val/feature_spread` and `val/effective_rank` (see `embedding_health`), `val/alignment` and `val/uniformity`
        (see `alignment_and_uniformity`), and `val/knn_accuracy` with a bank.
    """
    sample = images[_of_health(images)]
    seen = features(encoder, sample, device)
    health = embedding_health(seen)
    if has_collapsed(health, len(sample)):
        log.warning(
            "The embedding has collapsed: feature spread %.3f (expected about 1), effective rank %.1f. Try a lower "
            "train.learning_rate, a larger train.batch_size, or another pretext.",
            health["feature_spread"],
            health["effective_rank"],
        )
    views = HEALTH_VIEWS(device.floats(sample), Rng(torch.Generator().manual_seed(0)))
    both = alignment_and_uniformity(seen, features(encoder, views.mul(255).round().byte(), device))
    metrics = {f"val/{k}": v for k, v in {**health, **both}.items()}
    if knn is None:
        return metrics
    bank, queries = knn
    assert bank.labels is not None
    assert queries.labels is not None
    p = knn_probabilities(
        features(encoder, queries.images, device),
        features(encoder, bank.images, device),
        bank.labels,
        len(bank.class_names),
    )
    return {**metrics, "val/knn_accuracy": float((p.argmax(1) == queries.labels).float().mean())}


def score_name(*balance: str) -> str:
    """Return the metric by which to choose among classifiers: accuracy, or macro F1 if classes are balanced for any."""
    return "val/accuracy" if set(balance) <= {"none"} else "val/f1_macro"


def classifier_metrics(classifier: Classifier | KNNClassifier, val: Dataset | None, device: Device) -> dict[str, float]:
    """Compute a classifier's accuracy, loss and calibration on validation, see `prediction_metrics`.

    Returns:
        Empty without validation data.
    """
    if val is None:
        return {}
    assert val.labels is not None
    p = probabilities(classifier, val.images, device).numpy()
    return prediction_metrics(p, val.labels.numpy(), grouped=val.groups is not None)


def prediction_metrics(p: np.ndarray, labels: np.ndarray, grouped: bool = False) -> dict[str, float]:
    """Compute accuracy, loss and calibration of predictions on images that the classifier was not trained on.

    Args:
        p: probabilities, `N x classes`; N is at least 1.
        labels: N.
        grouped: whether images belong to groups, so that no threshold can be certified.

    Returns:
        `val/images`, N; `val/accuracy`, `val/f1_macro` over the classes that occur in the labels or predictions,
        `val/loss` in nats,
        `val/temperature`, and the metrics of the `calibration.Threshold` or, if there is none, the
        `val/highest_confidence`, calibrated.
    """
    from sklearn.metrics import f1_score

    temperature = calibration.fit_temperature(p, labels)
    calibrated = calibration.tempered(p, temperature)
    threshold = calibration.threshold(calibrated, labels, independent=not grouped)
    return {
        "val/images": len(labels),
        "val/accuracy": float((p.argmax(1) == labels).mean()),
        "val/f1_macro": float(f1_score(labels, p.argmax(1), average="macro", zero_division=0)),
        "val/loss": calibration.log_loss(p, labels),
        "val/temperature": temperature,
        **(threshold.metrics() if threshold else {"val/highest_confidence": float(calibrated.max())}),
    }


def accuracy_text(metrics: Mapping[str, float], labeled: Labeled) -> str:
    """Return a line on the accuracy on images that were not trained on, with its 95 % CI over images.

    With groups there is no interval. Classes without such images are counted: of a label budget, those with one label.

    Args:
        metrics: of `prediction_metrics`.
        labeled: the images of the budget and of validation.
    """
    accuracy, n = metrics["val/accuracy"], int(metrics["val/images"])
    what, data = "Validation accuracy", labeled.val
    if data is None:
        what, data = "Out-of-fold accuracy, corrected for the choice:", labeled.budget
    assert data.labels is not None
    labels, ends = data.labels.numpy(), "no CI, since images of one group are dependent"
    sizes = counts(labels) if data.groups is None else groups_per_class(labels, data.groups)
    if data.groups is None:
        ends = f"95 % CI {interval(*wilson_interval(round(accuracy * n), n))}"
    least = 1 if labeled.val else 2
    known, classes = sum(size >= least for size in sizes.values()), len(data.class_names)
    of = f" of {known} of {classes} classes; the others have too few to tell" if known < classes else ""
    return f"{what} {percent(accuracy)} ({ends}) on {counted(n, 'image')}{of}"
