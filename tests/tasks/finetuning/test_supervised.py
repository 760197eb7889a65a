import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslrun.augment import Augment, Rng
from sslrun.config.types import Node
from sslrun.models.backbones.pixels import pixels
from sslrun.models.backbones.smallcnn import smallcnn
from sslrun.models.classifier import Classifier
from sslrun.models.encoder import Encoder, build_encoder
from sslrun.tasks.finetuning.supervised import Finetuning, smoothed_loss, stages_of
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
    groups, rates = build_optimizer(ADAMW, task, 0.01).param_groups, multiples(task)
    assert rates == {name: 0.1 if ".encoder." in name else 1.0 for name in rates}
    assert set(rates.values()) == {0.1, 1.0}
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert {name: decays[id(p)] for name, p in task.named_parameters()} == {
        name: 0.05 if p.ndim > 1 else 0.0 for name, p in task.named_parameters()
    }


def multiples(task: Finetuning) -> dict[str, float]:
    """Return the multiple of the learning rate of each parameter, as the optimizer has it."""
    rates = {id(p): group["rate"] for group in build_optimizer(ADAMW, task, 0.01).param_groups for p in group["params"]}
    return {name: rates[id(p)] for name, p in task.named_parameters()}


FIRST_OF_STAGE: dict[str, tuple[Node, list[str]]] = {  # settings, and the first module of each of the four stages
    "smallcnn": ({"widths": [2, 2, 4, 4]}, ["0.", "4.", "8.", "12."]),
    "resnet18": ({"stem": "auto"}, ["conv1", "layer2.0.", "layer3.0.", "layer4.0."]),
    "mobilenetv2": ({"stem": "auto"}, [f"features.{i}." for i in (0, 5, 9, 14)]),
    "timm": (
        {"name": "tf_efficientnet_lite0"},
        ["net.conv_stem", *(f"net.blocks.{b}." for b in ("2.1", "4.0", "5.1"))],
    ),
    "torchvision": ({"name": "vgg11_bn"}, [f"net.features.{i}." for i in (0, 8, 15, 22)]),
}


@pytest.mark.parametrize("name", FIRST_OF_STAGE)
def test_earlier_stages_of_every_backbone_learn_at_lower_rates(name: str) -> None:
    settings, first = FIRST_OF_STAGE[name]
    node = {"_target_": f"sslrun.models.backbones.{name}.{name}", **settings}
    classifier = Classifier(build_encoder(node, 32, [0.5] * 3, [0.25] * 3), 3)
    task = Finetuning(classifier, Augment(**UNCHANGED), 0.0, 0, True, 0.2, layer_decay=0.5, head_rate=0.01)
    rates = multiples(task)
    assert [rates.pop(f"classifier.head.{p}") for p in ("weight", "bias")] == [0.01, 0.01]
    in_order = list(rates.values())
    assert in_order == sorted(in_order)
    assert sorted(set(in_order)) == pytest.approx([0.025, 0.05, 0.1, 0.2])
    begins = [next(k for k, rate in rates.items() if rate == r) for r in sorted(set(in_order))]
    for key, prefix in zip(begins, first, strict=True):
        assert key.startswith(f"classifier.encoder.backbone.{prefix}"), (key, prefix)


def test_a_backbone_of_few_layers_has_as_many_stages() -> None:
    encoder = Encoder(smallcnn(32, widths=[4, 8]), [0.5] * 3, [0.25] * 3)
    assert sorted(set(stages_of(encoder).values())) == [0, 1]
    assert stages_of(Encoder(pixels(32), [0.5] * 3, [0.25] * 3)) == {}


def balanced(label_smoothing: float, **balance: Tensor) -> Finetuning:
    torch.manual_seed(0)
    classifier = Classifier(Encoder(smallcnn(32, widths=[4, 8]), [0.5] * 3, [0.25] * 3), 3)
    return Finetuning(classifier, Augment(**UNCHANGED), label_smoothing, 0, False, 1.0, 1.0, 1.0, **balance).eval()


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.4])
@torch.no_grad()
def test_class_weights_multiply_the_loss_of_each_image(label_smoothing: float, pieces: Tensor) -> None:
    labels, weights = (torch.arange(60) % 7).clamp(max=2), torch.tensor([0.25, 1.0, 3.0])
    task = balanced(label_smoothing, class_weights=weights)
    p = task.classifier.head(task.classifier.encoder(pieces)).softmax(1)
    total = 0.0
    for row, k in zip(p.tolist(), labels.tolist(), strict=True):
        target = [label_smoothing / 3 + (1 - label_smoothing) * (c == k) for c in range(3)]
        total -= float(weights[k]) * sum(t * math.log(q) for t, q in zip(target, row, strict=True))
    loss = task({"images": pieces, "labels": labels}, rng())["loss"]
    assert float(loss) == pytest.approx(total / 60, rel=1e-5)
    assert "class_weights" not in task.state_dict()


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.4])
@torch.no_grad()
def test_logit_adjustment_is_the_softmax_weighted_by_the_priors(label_smoothing: float, pieces: Tensor) -> None:
    """Menon et al. 2021, eq. 10: -log(prior_y exp(f_y) / sum of prior_c exp(f_c)); the accuracy is of f itself."""
    labels, priors = (torch.arange(60) % 7).clamp(max=2), torch.tensor([0.7, 0.2, 0.1])
    task = balanced(label_smoothing, class_priors=priors)
    logits = task.classifier.head(task.classifier.encoder(pieces))
    total = 0.0
    for row, k in zip(logits.tolist(), labels.tolist(), strict=True):
        weighted = [float(q) * math.exp(f) for q, f in zip(priors, row, strict=True)]
        target = [label_smoothing * float(q) + (1 - label_smoothing) * (c == k) for c, q in enumerate(priors)]
        total -= sum(t * math.log(w / sum(weighted)) for t, w in zip(target, weighted, strict=True))
    out = task({"images": pieces, "labels": labels}, rng())
    assert float(out["loss"]) == pytest.approx(total / 60, rel=1e-5)
    assert float(out["accuracy"]) == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert "class_priors" not in task.state_dict()


def test_smoothed_labels_with_logit_adjustment_favor_no_rare_class() -> None:
    """Logits that only know the frequencies: a constant classifier is best with equal logits, smoothed or not."""
    priors = torch.tensor([0.98, 0.02])
    logits = torch.zeros(100, 2, requires_grad=True)
    labels = torch.tensor([0] * 98 + [1] * 2)
    (gradient,) = torch.autograd.grad(smoothed_loss(logits, labels, 0.1, class_priors=priors), logits)
    assert torch.allclose(gradient.sum(0), torch.zeros(2), atol=1e-6)


@torch.no_grad()
def test_classes_without_labels_leave_the_loss_finite(pieces: Tensor) -> None:
    labels = torch.arange(60) % 2
    for balance in (
        {"class_priors": torch.tensor([0.5, 0.5, 0.0])},
        {"class_weights": torch.tensor([1.0, 1.0, 0.0])},
    ):
        assert balanced(0.1, **balance)({"images": pieces, "labels": labels}, rng())["loss"].isfinite()
