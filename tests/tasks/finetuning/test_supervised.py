from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslrun.augment import Augment, Rng
from sslrun.models.backbones.smallcnn import smallcnn
from sslrun.models.classifier import Classifier
from sslrun.models.encoder import Encoder
from sslrun.tasks.finetuning.supervised import Finetuning
from sslrun.training.optimizers import build_optimizer
from tests.helpers import IDENTITY, train


def test_case_59_a_frozen_backbone_does_not_change(pieces: Tensor) -> None:
    encoder = Encoder(smallcnn(32, widths=[4, 8]), [0.5] * 3, [0.2] * 3)
    model = Finetuning(Classifier(encoder, 2), Augment(**IDENTITY), 0.0, 10, False, 1.0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    images, labels = (pieces * 255).to(torch.uint8), torch.arange(60) % 2
    train(model, images, "a", labels=labels, batch_size=16, warmup_fraction=0.0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == ("encoder" in name), name


def test_frozen_batch_norm_keeps_its_statistics_while_weights_change(pieces: Tensor) -> None:
    encoder = Encoder(smallcnn(32, widths=[4]), [0.5] * 3, [0.2] * 3)
    for freeze in (True, False):
        model = Finetuning(Classifier(encoder, 2), Augment(**IDENTITY), 0.0, 0, freeze, 1.0)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        model.before_step(0, 1)
        loss = model({"images": pieces, "labels": torch.arange(60) % 2}, Rng(torch.Generator()))["loss"]
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        loss.backward()
        optimizer.step()
        after = model.state_dict()
        still = [torch.equal(after[k], before[k]) for k in before if "running" in k]
        assert all(still) if freeze else not any(still)
        assert not torch.equal(
            after["classifier.encoder.backbone.0.weight"], before["classifier.encoder.backbone.0.weight"]
        )
        model.eval()


def test_case_60_the_classifier_learns_one_batch(pieces: Tensor) -> None:
    labels = torch.arange(15) % 3
    model = Finetuning(Classifier(Encoder(smallcnn(32, widths=[16, 32]), [0.5] * 3, [0.2] * 3), 3), Augment(**IDENTITY),
                       0.0, 0, False, 1.0)  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for step in range(60):
        model.before_step(step, 60)
        out = model({"images": pieces[::4], "labels": labels}, Rng(torch.Generator()))
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
    assert out["accuracy"] > 0.95


UNCHANGED: dict[str, Any] = {
    **{"crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0], "degrees": 0.0, "horizontal_flip": False},
    **{"color_jitter": [0.0] * 4, "jitter_probability": 0.0, "grayscale": 0.0, "blur": 0.0, "probability": 1.0},
}
ADAMW = {"_target_": "sslrun.training.optimizers.adamw", "weight_decay": 0.05, "betas": [0.9, 0.999]}


def finetuning(label_smoothing: float = 0.0, backbone_rate: float = 1.0, **augment: Any) -> Finetuning:
    torch.manual_seed(0)
    classifier = Classifier(Encoder(smallcnn(32, widths=[4, 8]), [0.5] * 3, [0.25] * 3), 3)
    return Finetuning(classifier, Augment(**{**UNCHANGED, **augment}), label_smoothing, 0, False, backbone_rate)


def rng() -> Rng:
    return Rng(torch.Generator().manual_seed(0))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.4])
@torch.no_grad()
def test_the_loss_is_cross_entropy_with_label_smoothing(label_smoothing: float, pieces: Tensor) -> None:
    task, labels = finetuning(label_smoothing).eval(), torch.arange(60) % 3
    out = task({"images": pieces, "labels": labels}, rng())
    logits = task.classifier.head(task.classifier.encoder(pieces))
    assert float(out["loss"]) == pytest.approx(float(F.cross_entropy(logits, labels, label_smoothing=label_smoothing)))
    assert float(out["accuracy"]) == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert float(F.cross_entropy(logits, labels, label_smoothing=0.1)) != pytest.approx(
        float(F.cross_entropy(logits, labels)), rel=1e-4
    )


@torch.no_grad()
def test_the_loss_is_of_augmented_images(pieces: Tensor) -> None:
    task, labels = finetuning(crop_scale=[0.2, 0.5]).eval(), torch.arange(60) % 3
    batch = {"images": pieces, "labels": labels}
    view = task.views(pieces, rng())["view"]
    logits = task.classifier.head(task.classifier.encoder(view))
    assert float(task(batch, rng())["loss"]) == pytest.approx(float(F.cross_entropy(logits, labels)))
    assert not torch.equal(view, pieces)


def test_the_backbone_rate_applies_only_to_the_encoders_weights() -> None:
    task = finetuning(backbone_rate=0.1)
    groups = build_optimizer(ADAMW, task, 0.01).param_groups
    rates = {id(p): group["rate"] for group in groups for p in group["params"]}
    multiples = {name: rates[id(p)] for name, p in task.named_parameters()}
    assert multiples == {name: 0.1 if ".encoder." in name else 1.0 for name in multiples}
    assert set(multiples.values()) == {0.1, 1.0}
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert {name: decays[id(p)] for name, p in task.named_parameters()} == {
        name: 0.05 if p.ndim > 1 else 0.0 for name, p in task.named_parameters()
    }
