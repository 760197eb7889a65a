import numpy as np
import pytest
import torch

from sslrun.base.console import log
from sslrun.data.dataset import Dataset
from sslrun.data.images import Images
from sslrun.evaluation import calibration, validation
from sslrun.evaluation.metrics import embedding_health
from sslrun.evaluation.validation import classifier_metrics, encoder_metrics
from sslrun.models.classifier import Classifier
from sslrun.models.encoder import Encoder
from tests.helpers import CPU, Pixels


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


def pixels() -> Encoder:
    return Encoder(Pixels(), [0.0] * 3, [1.0] * 3, image_size=8)


def test_accuracy_and_loss_of_validation_are_not_calibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    p = torch.tensor([[0.9, 0.1]] * 3 + [[0.2, 0.8]] * 2)
    monkeypatch.setattr(validation, "probabilities", lambda *_: p)
    val = red_and_blue(5)
    val.labels = torch.tensor([0, 0, 1, 1, 1])
    result = classifier_metrics(Classifier(pixels(), 2), val, CPU)
    assert result["val/accuracy"] == pytest.approx(0.8)
    assert result["val/f1_macro"] == pytest.approx((0.8 + 0.8) / 2)
    assert result["val/loss"] == pytest.approx(float(torch.nn.functional.nll_loss(p.log(), val.labels)))
    assert set(result) == {
        "val/accuracy",
        "val/f1_macro",
        "val/loss",
        "val/temperature",
    }  # too few images for a threshold
    assert classifier_metrics(Classifier(pixels(), 2), None, CPU) == {}


def test_the_health_is_of_images_of_the_whole_pretraining(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images may be listed by class; every second of 9 is used if 4 are enough."""
    monkeypatch.setattr(validation, "HEALTH_IMAGES", 4)
    data = red_and_blue(9)
    result = encoder_metrics(pixels(), data.images, data, None, CPU)
    expected = embedding_health(data.images[torch.tensor([0, 2, 4, 6, 8])].float().div(255).mean((2, 3)))
    assert result == pytest.approx({f"val/{k}": v for k, v in expected.items()}, rel=1e-4)
    monkeypatch.setattr(validation, "HEALTH_IMAGES", 100)
    expected = embedding_health(data.images[torch.arange(9)].float().div(255).mean((2, 3)))
    assert encoder_metrics(pixels(), data.images, data, None, CPU)["val/effective_rank"] == pytest.approx(
        expected["effective_rank"], rel=1e-4
    )


def test_the_knn_bank_is_drawn_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of training data sorted by class, the first half alone is of one class."""
    monkeypatch.setattr(validation, "KNN_BANK", 50)
    data, val = red_and_blue(100), red_and_blue(40)
    assert data.labels is not None
    by_class = data.take(data.labels.argsort(stable=True).numpy())
    assert encoder_metrics(pixels(), data.images, by_class, val, CPU)["val/knn_accuracy"] == 1


def test_knn_accuracy_needs_labels_of_two_classes() -> None:
    def names(data: Dataset, val: Dataset) -> set[str]:
        return set(encoder_metrics(pixels(), data.images, data, val, CPU))

    data, val = red_and_blue(20), red_and_blue(20)
    assert "val/knn_accuracy" in names(data, val)
    unlabeled = Dataset(data.images, None, [], data.names)
    one_class = Dataset(data.images, torch.zeros(20, dtype=torch.int64), ["red"], data.names)
    for some, other in ((unlabeled, val), (data, unlabeled), (one_class, val)):
        assert names(some, other) == {"val/feature_spread", "val/effective_rank"}


def test_a_collapsed_embedding_is_logged_as_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[str] = []
    monkeypatch.setattr(log, "warning", lambda text, *values: messages.append(text % values))
    data = red_and_blue(20)
    for spread, rank in ((1.0, 30.0), (0.012, 3.0)):
        health = {"feature_spread": spread, "effective_rank": rank}
        monkeypatch.setattr(validation, "embedding_health", lambda _, health=health: health)
        encoder_metrics(pixels(), data.images, data, None, CPU)
    (message,) = messages
    assert message.startswith(
        "The embedding has collapsed: feature spread 0.012 (expected about 1), effective rank 3.0."
    )


@pytest.mark.parametrize("n", [19, 20, 21])
@pytest.mark.parametrize("correct", [True, False])
def test_with_20_images_the_reason_for_no_threshold_is_kept(
    n: int, correct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "probabilities", lambda *_: torch.tensor([[0.9, 0.1]]).repeat(n, 1))
    val = red_and_blue(n + n % 2).take(np.arange(n))
    val.labels = torch.full((n,), 0 if correct else 1)
    result = classifier_metrics(Classifier(pixels(), 2), val, CPU)
    assert ("val/confidence_threshold" in result) == (correct and n >= 20)
    assert result.get("val/accuracy_if_confident") == (0.0 if not correct and n >= 20 else None)
