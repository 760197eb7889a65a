import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sslrun.data.dataset import Dataset
from sslrun.data.images import Images
from sslrun.evaluation import calibration, validation
from sslrun.evaluation.validation import classifier_metrics, encoder_metrics
from sslrun.models.classifier import Classifier
from sslrun.models.encoder import Encoder
from tests.helpers import CPU


class Pixels(nn.Module):
    """A backbone that returns the images as its only map."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = [3]

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x]


def red_and_blue(n: int) -> Dataset:
    labels = torch.arange(n) % 2
    pixels = torch.randint(0, 40, (n, 8, 8, 3))
    pixels[torch.arange(n), :, :, 2 * labels] += 200
    images = Images([pixels.to(torch.uint8)], np.zeros((n, 16), np.uint8))
    return Dataset(images, labels, ["red", "blue"], [str(i) for i in range(n)])


def test_the_knn_accuracy_of_pretraining_is_1_if_colors_separate_the_classes() -> None:
    data, val = red_and_blue(60), red_and_blue(40)
    encoder = Encoder(Pixels(), [0.0] * 3, [1.0] * 3, image_size=8)
    assert encoder_metrics(encoder, data.images, data, val, CPU)["val/knn_accuracy"] == 1


def test_knn_queries_are_of_all_classes_even_if_images_are_listed_by_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of validation sorted by class, the second half is labeled wrongly, and not all images are classified."""
    monkeypatch.setattr(validation, "KNN_QUERIES", 20)
    data, val = red_and_blue(60), red_and_blue(80)
    assert val.labels is not None
    by_class = val.take(val.labels.argsort(stable=True).numpy())
    by_class.labels = torch.zeros(80, dtype=torch.int64)
    encoder = Encoder(Pixels(), [0.0] * 3, [1.0] * 3, image_size=8)
    assert 0.2 < encoder_metrics(encoder, data.images, data, by_class, CPU)["val/knn_accuracy"] < 0.8


def test_the_confidence_threshold_is_one_of_calibrated_confidences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 200 images with a confidence of 0.99, 2 are wrong; of 100 with 0.9, half."""
    p = np.array([[0.99, 0.01]] * 200 + [[0.9, 0.1]] * 100, dtype=np.float32)
    labels = np.array([0] * 198 + [1] * 2 + [0, 1] * 50)
    monkeypatch.setattr(validation, "probabilities", lambda *_: torch.from_numpy(p))
    val = red_and_blue(300)
    val.labels = torch.from_numpy(labels)
    encoder = Encoder(Pixels(), [0.0] * 3, [1.0] * 3, image_size=8)
    result = classifier_metrics(Classifier(encoder, 2), val, CPU)
    assert result["val/temperature"] != pytest.approx(1, abs=0.05)
    calibrated = calibration.tempered(p, result["val/temperature"])
    assert result["val/confidence_threshold"] == calibration.threshold(calibrated, labels)
    assert result["val/confidence_threshold"] != calibration.threshold(p, labels)
