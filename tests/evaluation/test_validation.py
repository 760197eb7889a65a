import logging

import numpy as np
import pytest
import torch

from sslrun.base.console import log
from sslrun.data.dataset import Dataset
from sslrun.data.images import Images
from sslrun.data.labeled import Labeled
from sslrun.evaluation import calibration, validation
from sslrun.evaluation.metrics import embedding_health
from sslrun.evaluation.validation import (
    accuracy_text,
    classifier_metrics,
    encoder_metrics,
    knn_images,
    prediction_metrics,
)
from sslrun.models.classifier import Classifier
from sslrun.models.encoder import Encoder
from tests.helpers import CPU, Pixels, make_task


def red_and_blue(n: int) -> Dataset:
    labels = torch.arange(n) % 2
    pixels = torch.randint(0, 40, (n, 8, 8, 3))
    pixels[torch.arange(n), :, :, 2 * labels] += 200
    images = Images([pixels.to(torch.uint8)], np.zeros((n, 16), np.uint8))
    return Dataset(images, labels, ["red", "blue"], [str(i) for i in range(n)])


def test_the_knn_accuracy_of_pretraining_is_1_if_colors_separate_the_classes() -> None:
    data = red_and_blue(60)
    assert encoder_metrics(pixels(), data.images, knn_images(data, None), CPU)["val/knn_accuracy"] == 1


def test_knn_queries_are_of_all_classes_even_if_images_are_listed_by_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "KNN_QUERIES", 20)
    data, val = red_and_blue(200), red_and_blue(80)
    assert data.labels is not None
    assert val.labels is not None
    by_class, val_by_class = (d.take(d.labels.argsort(stable=True).numpy()) for d in (data, val))  # type: ignore[union-attr]
    for given in (None, val_by_class):
        bank, queries = knn_images(by_class, given)  # type: ignore[misc]
        assert len(queries) == 20
        assert all(4 <= int(d.labels.sum()) <= len(d) - 4 for d in (bank, queries))  # type: ignore[union-attr]


@pytest.mark.parametrize("n", [50, 57, 300])
@pytest.mark.parametrize("grouped", [False, True])
def test_bank_and_queries_share_no_image_and_no_group(n: int, grouped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "KNN_BANK", 100)
    monkeypatch.setattr(validation, "KNN_QUERIES", 40)
    data = red_and_blue(n)
    data.groups = np.array([str(i // 4) for i in range(n)], dtype=object) if grouped else None
    bank, queries = knn_images(data, None)  # type: ignore[misc]
    assert not set(bank.names) & set(queries.names)
    assert (len(queries), len(bank) <= 100) == (min(40, round(0.2 * n)), True)
    assert grouped or len(bank) == min(100, n - len(queries))
    if grouped:
        assert not set(bank.groups) & set(queries.groups)  # type: ignore[arg-type]


def test_a_given_validation_has_all_queries() -> None:
    data, given = red_and_blue(20), red_and_blue(10)
    given.names = [f"val/{name}" for name in given.names]
    bank, queries = knn_images(data, given)  # type: ignore[misc]
    assert (sorted(bank.names), sorted(queries.names)) == (sorted(data.names), sorted(given.names))


def test_data_of_one_group_has_no_knn_accuracy() -> None:
    data = red_and_blue(20)
    data.groups = np.array(["same"] * 20, dtype=object)
    assert knn_images(data, None) is None
    assert knn_images(red_and_blue(45), None) is None  # 9 queries
    assert knn_images(red_and_blue(50), None) is not None
    assert knn_images(red_and_blue(50), red_and_blue(9)) is None


def test_the_confidence_threshold_is_one_of_calibrated_confidences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 200 images with a confidence of 0.99, 2 are wrong; of 100 with 0.9, half. With groups none is certified."""
    p = np.array([[0.99, 0.01]] * 200 + [[0.9, 0.1]] * 100, dtype=np.float32)
    labels = np.array([0] * 198 + [1] * 2 + [0, 1] * 50)
    monkeypatch.setattr(validation, "probabilities", lambda *_: torch.from_numpy(p))
    val = red_and_blue(300)
    val.labels = torch.from_numpy(labels)
    encoder = Encoder(Pixels(), [0.0] * 3, [1.0] * 3, image_size=8)
    result = classifier_metrics(Classifier(encoder, 2), val, CPU)
    assert result["val/temperature"] != pytest.approx(1, abs=0.05)
    calibrated = calibration.tempered(p, result["val/temperature"])
    expected, uncalibrated = calibration.threshold(calibrated, labels), calibration.threshold(p, labels)
    assert expected is not None
    assert uncalibrated is not None
    assert calibration.Threshold.of(result) == expected
    assert (expected.certified, expected.correct, expected.accepted) == (True, 198, 200)
    assert expected.value != uncalibrated.value
    assert result["val/confidence_certified"] == 1.0
    val.groups = np.arange(300).astype(str)
    assert "val/confidence_threshold" not in classifier_metrics(Classifier(encoder, 2), val, CPU)


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
    names = {"val/images", "val/accuracy", "val/f1_macro", "val/loss", "val/temperature", "val/highest_confidence"}
    assert set(result) == names  # no confidence reaches 95 %
    calibrated = calibration.tempered(p.numpy(), result["val/temperature"])
    assert result["val/highest_confidence"] == pytest.approx(calibrated.max())
    assert result["val/images"] == 5
    assert result == prediction_metrics(p.numpy(), val.labels.numpy())
    assert classifier_metrics(Classifier(pixels(), 2), None, CPU) == {}


def test_the_health_is_of_images_of_the_whole_pretraining(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images may be listed by class; every second of 9 is used if 4 are enough."""
    monkeypatch.setattr(validation, "HEALTH_IMAGES", 4)
    data = red_and_blue(9)
    result = encoder_metrics(pixels(), data.images, None, CPU)
    expected = embedding_health(data.images[torch.tensor([0, 2, 4, 6, 8])].float().div(255).mean((2, 3)))
    for name, value in expected.items():
        assert result[f"val/{name}"] == pytest.approx(value, rel=1e-4)
    monkeypatch.setattr(validation, "HEALTH_IMAGES", 100)
    expected = embedding_health(data.images[torch.arange(9)].float().div(255).mean((2, 3)))
    assert encoder_metrics(pixels(), data.images, None, CPU)["val/effective_rank"] == pytest.approx(
        expected["effective_rank"], rel=1e-4
    )


def test_the_knn_bank_is_drawn_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of training data sorted by class, the first half alone is of one class."""
    monkeypatch.setattr(validation, "KNN_BANK", 50)
    data, val = red_and_blue(100), red_and_blue(40)
    assert data.labels is not None
    by_class = data.take(data.labels.argsort(stable=True).numpy())
    assert encoder_metrics(pixels(), data.images, knn_images(by_class, val), CPU)["val/knn_accuracy"] == 1


def test_knn_accuracy_needs_labels_of_two_classes() -> None:
    def names(data: Dataset, val: Dataset) -> set[str]:
        return set(encoder_metrics(pixels(), data.images, knn_images(data, val), CPU))

    data, val = red_and_blue(20), red_and_blue(20)
    assert "val/knn_accuracy" in names(data, val)
    unlabeled = Dataset(data.images, None, [], data.names)
    one_class = Dataset(data.images, torch.zeros(20, dtype=torch.int64), ["red"], data.names)
    for some, other in ((unlabeled, val), (data, unlabeled), (one_class, val)):
        assert names(some, other) == {"val/feature_spread", "val/effective_rank", "val/alignment", "val/uniformity"}


def test_a_collapsed_embedding_is_logged_as_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[str] = []
    monkeypatch.setattr(log, "warning", lambda text, *values: messages.append(text % values))
    data = red_and_blue(20)
    for spread, rank in ((1.0, 30.0), (0.012, 3.0)):
        health = {"feature_spread": spread, "effective_rank": rank}
        monkeypatch.setattr(validation, "embedding_health", lambda _, health=health: health)
        encoder_metrics(pixels(), data.images, None, CPU)
    (message,) = messages
    assert message.startswith(
        "The embedding has collapsed: feature spread 0.012 (expected about 1), effective rank 3.0."
    )


@pytest.mark.parametrize(("confidence", "n"), [(0.99, 8), (0.7, 8), (0.7, 400)])
def test_a_threshold_or_the_reason_that_there_is_none_is_kept(
    confidence: float, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """400 correct predictions are a certificate, and make the classifier more confident."""
    monkeypatch.setattr(
        validation, "probabilities", lambda *_: torch.tensor([[confidence, 1 - confidence]]).repeat(n, 1)
    )
    val = red_and_blue(n)
    val.labels = torch.zeros(n, dtype=torch.int64)
    result = classifier_metrics(Classifier(pixels(), 2), val, CPU)
    known = (confidence, n) != (0.7, 8)
    assert ("val/confidence_threshold" in result) == known
    assert ("val/highest_confidence" in result) == (not known)
    assert result.get("val/confidence_certified") == (float(n == 400) if known else None)


def test_the_accuracy_has_its_interval_and_names_how_many_classes_it_is_of() -> None:
    data, metrics = red_and_blue(10), {"val/accuracy": 0.8, "val/images": 10}
    inside = Labeled(data, data, None, "inside")
    text = "Out-of-fold accuracy, corrected for the choice: 80.0 % (95 % CI 49.0 to 94.3) on 10 images"
    assert accuracy_text(metrics, inside) == text
    few = data.take(np.array([0, 2, 4, 1]))  # one blue image, which no fold holds out
    text = (
        "Out-of-fold accuracy, corrected for the choice: 100.0 % (95 % CI 43.9 to 100.0) on 3 images of 1 of 2 classes"
    )
    line = accuracy_text({"val/accuracy": 1.0, "val/images": 3}, Labeled(data, few, None, "inside"))
    assert line == f"{text}; the others have too few to tell"
    extra = Labeled(data, few, data, "extra")
    assert accuracy_text(metrics, extra) == "Validation accuracy 80.0 % (95 % CI 49.0 to 94.3) on 10 images"


def test_images_of_groups_give_the_accuracy_no_interval() -> None:
    data = red_and_blue(10)
    data.groups = np.array(["a", "b"] * 4 + ["c", "d"], dtype=object)
    line = accuracy_text({"val/accuracy": 0.8, "val/images": 10}, Labeled(data, data, None, "inside"))
    assert line.endswith("80.0 % (no CI, since images of one group are dependent) on 10 images")


@pytest.mark.parametrize("name", ["byol", "simsiam", "barlowtwins", "vicreg", "swav", "dino", "vae", "gan"])
def test_a_collapsed_network_of_each_kind_of_task_is_told_and_a_healthy_one_not(
    name: str, pieces: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the encoder that goes downstream."""
    caplog.set_level(logging.WARNING, "sslrun")
    task = make_task(name)
    encoder = task.get_submodule(task.downstream)
    images = Images([pieces.mul(255).byte().permute(0, 2, 3, 1).contiguous()], np.zeros((60, 16), np.uint8))
    encoder_metrics(encoder.eval(), images, None, CPU)  # type: ignore[arg-type]
    assert not caplog.messages
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.mul_(1e-4)
                module.bias.fill_(1.0)
    metrics = encoder_metrics(encoder.eval(), images, None, CPU)  # type: ignore[arg-type]
    assert "The embedding has collapsed" in caplog.messages[0]
    assert metrics["val/uniformity"] > -0.01
