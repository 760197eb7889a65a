"""The training of a fold."""

from typing import Any

import numpy as np
import pytest
import torch

from sslrun.base.errors import UserError
from sslrun.data.balance import class_priors, effective_number_weights
from sslrun.data.labels import Fold
from sslrun.evaluation.probe import regression
from sslrun.models.classifier import Classifier
from sslrun.models.features import features
from sslrun.training import jobs
from sslrun.training.folds import FoldTraining, finetuning, fold_probabilities, images_of
from sslrun.training.jobs import run_jobs
from tests.helpers import CPU
from tests.training.folding import changed, encoder, red_and_blue, training

DATA = red_and_blue(24)
FOLD = Fold(np.arange(16), np.arange(16, 24))


def probabilities(seed: int = 0, head: Any = None, fold: Fold = FOLD, **keys: Any) -> np.ndarray:
    return fold_probabilities(training(changed(**keys), DATA, fold, encoder(seed), head))


def test_a_fold_training_has_the_same_bits_in_a_worker_process_and_in_this_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jobs, "cores", lambda: 2)
    folds = [FOLD, Fold(np.arange(8, 24), np.arange(8))]
    augmented = changed(augment={**changed()["augment"], "crop_scale": [0.5, 1.0], "probability": 1.0})
    todo: list[FoldTraining] = [training(augmented, DATA, fold, encoder()) for fold in folds]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        there, here = (dict(run_jobs(fold_probabilities, todo, parallel)) for parallel in (True, False))
    finally:
        torch.set_num_threads(threads)
        jobs.stop()
    for i in range(2):
        assert there[i].tobytes() == here[i].tobytes()
    assert here[0].tobytes() != here[1].tobytes()


def test_the_validation_images_have_probabilities_and_colors_are_learned() -> None:
    p = probabilities(steps=30)
    assert p.shape == (8, 2)
    assert p.dtype == np.float32
    assert np.allclose(p.sum(1), 1, atol=1e-5)
    assert (p.argmax(1) == DATA.labels.numpy()[16:]).all()  # type: ignore[union-attr]


def test_a_training_that_changes_nothing_has_the_predictions_of_the_regression() -> None:
    """So that weights, head, pooling and the normalization of the images are those of the frozen network."""
    network = encoder(3)
    assert DATA.labels is not None
    x = features(network, DATA.images, CPU)
    head = regression(x[:16], DATA.labels[:16], 2, 1.0)
    p = probabilities(3, head, learning_rate=1e-12, freeze_batch_norm=True)
    assert np.allclose(p, (x[16:] @ head[0].T + head[1]).softmax(1), atol=1e-4)
    grid = encoder(3)
    grid.pooling = "grid"
    x = features(grid, DATA.images, CPU)
    head = regression(x[:16], DATA.labels[:16], 2, 1.0)
    p = probabilities(3, head, learning_rate=1e-12, freeze_batch_norm=True, pooling="grid")
    assert np.allclose(p, (x[16:] @ head[0].T + head[1]).softmax(1), atol=1e-4)


def test_labels_of_validation_images_do_not_matter() -> None:
    job = training(changed(), DATA, FOLD, encoder())
    other = training(changed(), DATA, FOLD, encoder())
    other.labels[16:] = 1 - other.labels[16:]
    assert fold_probabilities(job).tobytes() == fold_probabilities(other).tobytes()
    other.labels[0] = 1 - other.labels[0]
    assert fold_probabilities(job).tobytes() != fold_probabilities(other).tobytes()


def test_seed_weights_settings_and_training_images_matter() -> None:
    first = probabilities().tobytes()
    assert probabilities().tobytes() == first
    others = [
        probabilities(seed=1),  # of the encoder
        fold_probabilities(training(changed(seed=1), DATA, FOLD, encoder())),
        probabilities(steps=7),
        probabilities(learning_rate=0.02),
        probabilities(label_smoothing=0.2),
        probabilities(balance="sampling"),
        probabilities(fold=Fold(np.arange(2, 16), FOLD.val)),
    ]
    assert len({first, *(p.tobytes() for p in others)}) == len(others) + 1


def test_a_training_that_diverges_is_one_line() -> None:
    with pytest.raises(UserError) as error:
        probabilities(learning_rate=1e30, steps=3)
    assert str(error.value) == "a training of the cross-validation diverged; try train.learning_rate=1e+29"


@pytest.mark.parametrize(("n", "images"), [(16, 6 * 8), (5, 6 * 5)])
def test_the_number_of_images_that_a_training_passes_through_the_network(n: int, images: int) -> None:
    assert images_of(training(changed(), DATA, Fold(np.arange(n), FOLD.val), encoder())) == images
    by_epochs = changed(steps=None, epochs=3)
    assert images_of(training(by_epochs, DATA, Fold(np.arange(16), FOLD.val), encoder())) == 48


def test_settings_for_pretrained_weights_are_not_for_random_ones() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    rates = {"backbone_rate": 0.1, "layer_decay": 0.6, "head_rate": 0.02}
    config = changed(freeze_fraction=0.5, freeze_batch_norm=True, label_smoothing=0.2, **rates)
    classifier = Classifier(encoder(), 2)
    task = finetuning(classifier, config, labels, 10, pretrained=True)
    assert (task.freeze_steps, task.freeze_batch_norm, task.label_smoothing) == (5, True, 0.2)
    assert {k: getattr(task, k) for k in rates} == rates
    task = finetuning(classifier, config, labels, 10, pretrained=False)
    assert (task.freeze_steps, task.freeze_batch_norm) == (0, False)
    assert set(task.learning_rates().values()) == {1.0}


def test_balancing_follows_the_labels_of_the_training_images() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    tasks = {
        balance: finetuning(Classifier(encoder(), 2), changed(balance=balance), labels, 10, pretrained=False)
        for balance in ("none", "sampling", "weights", "logit")
    }
    assert tasks["weights"].class_weights is not None
    assert tasks["logit"].class_priors is not None
    assert torch.equal(tasks["weights"].class_weights, effective_number_weights(labels, 2))
    assert torch.equal(tasks["logit"].class_priors, class_priors(labels, 2))
    assert [b for b, task in tasks.items() if task.class_weights is None] == ["none", "sampling", "logit"]
    assert [b for b, task in tasks.items() if task.class_priors is None] == ["none", "sampling", "weights"]
