"""Metrics computed during training."""

import torch

from sslrun.base.console import log
from sslrun.data.dataset import Dataset
from sslrun.data.images import Images
from sslrun.device import Device
from sslrun.evaluation import calibration
from sslrun.evaluation.features import features, probabilities
from sslrun.evaluation.metrics import embedding_health, has_collapsed
from sslrun.models.classifier import Classifier, KNNClassifier, knn_probabilities
from sslrun.models.encoder import Encoder

SCORES = {"val/accuracy": "accuracy", "val/f1_macro": "macro F1"}  # by which classifiers are chosen
HEALTH_IMAGES, KNN_BANK, KNN_QUERIES = 1024, 5000, 2000


def encoder_metrics(
    encoder: Encoder, images: Images, data: Dataset, val: Dataset | None, device: Device
) -> dict[str, float]:
    """Compute the metrics of an encoder during pretraining; log a warning if the embedding has collapsed.

    Args:
        images: images of the pretraining; about 1,024 of them are used for `embedding_health`.
        data, val: training and validation data; a kNN classifier of 5,000 training images is evaluated on 2,000
            validation images; both are drawn at random if there are more.

    Returns:
        `val/feature_spread` and `val/effective_rank` (see `embedding_health`), and `val/knn_accuracy` if there are
        labels of more than one class.
    """
    health = embedding_health(features(encoder, images[:: max(1, len(images) // HEALTH_IMAGES)], device))
    if has_collapsed(health):
        log.warning(
            "The embedding has collapsed: feature spread %.3f (expected about 1), effective rank %.1f. Try a lower "
            "train.learning_rate, a larger train.batch_size, or another pretext.",
            health["feature_spread"],
            health["effective_rank"],
        )
    metrics = {f"val/{k}": v for k, v in health.items()}
    if val is None or val.labels is None or data.labels is None or len(data.class_names) < 2:
        return metrics
    rows, of_val = _drawn(len(data), KNN_BANK), _drawn(len(val), KNN_QUERIES).sort().values
    bank, queries = features(encoder, data.images[rows], device), features(encoder, val.images[of_val], device)
    predicted = knn_probabilities(queries, bank, data.labels[rows], len(data.class_names)).argmax(1)
    return {**metrics, "val/knn_accuracy": float((predicted == val.labels[of_val]).float().mean())}


def _drawn(n: int, most: int) -> torch.Tensor:
    """Return the positions of at most this many of n images, drawn at random, since images may be listed by class."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))[:most]


def score_name(*balance: str) -> str:
    """Return the metric by which to choose among classifiers: accuracy, or macro F1 if classes are balanced for any."""
    return "val/accuracy" if set(balance) <= {"none"} else "val/f1_macro"


def classifier_metrics(classifier: Classifier | KNNClassifier, val: Dataset | None, device: Device) -> dict[str, float]:
    """Compute a classifier's accuracy, loss and calibration on validation; empty without validation data.

    Returns:
        `val/accuracy`, `val/f1_macro` over the classes that occur in the labels or predictions, `val/loss` in nats,
        `val/temperature`, and `val/confidence_threshold` if there is one. Without one, but with 20 or more images,
        `val/accuracy_if_confident`, see `calibration.highest_accuracy`.
    """
    if val is None:
        return {}
    from sklearn.metrics import f1_score

    assert val.labels is not None
    p, labels = probabilities(classifier, val.images, device).numpy(), val.labels.numpy()
    temperature = calibration.fit_temperature(p, labels)
    calibrated = calibration.tempered(p, temperature)
    threshold, highest = calibration.threshold(calibrated, labels), calibration.highest_accuracy(calibrated, labels)
    lacking = {} if highest is None else {"val/accuracy_if_confident": highest}  # why there is no threshold
    return {
        "val/accuracy": float((p.argmax(1) == labels).mean()),
        "val/f1_macro": float(f1_score(labels, p.argmax(1), average="macro", zero_division=0)),
        "val/loss": calibration.log_loss(p, labels),
        "val/temperature": temperature,
        **(lacking if threshold is None else {"val/confidence_threshold": threshold}),
    }
