from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslrun.base.errors import UserError
from sslrun.base.output import write_json
from sslrun.models.classifier import Classifier, KNNClassifier
from sslrun.models.encoder import Pooling, build_encoder
from sslrun.models.initialization import resolve
from sslrun.models.trained import Trained, load_classifier, load_network
from sslrun.run import checkpoint
from tests.helpers import runs


def test_a_checkpoint_names_the_downstream_encoder(in_world: Path) -> None:
    """For example the teacher, where there is also a student."""
    run = runs("pretrain")[0]
    content = checkpoint.load(run / "last.pt")
    encoder = {k.removeprefix("encoder."): v for k, v in content["model"].items() if k.startswith("encoder.")}
    both = {f"encoder.{k}": torch.zeros_like(v) for k, v in encoder.items()}
    both |= {f"teacher.encoder.{k}": v for k, v in encoder.items()}
    checkpoint.save(run / "last.pt", {**content, "model": both, "downstream": "teacher.encoder"})
    loaded = load_network(run).encoder.state_dict()
    weights = resolve(str(run), {}, {}, {}).weights
    assert weights is not None
    assert weights.keys() == loaded.keys() == encoder.keys()
    assert all(torch.equal(v, loaded[k]) and torch.equal(v, weights[k]) for k, v in encoder.items())


BACKBONE = {"_target_": "sslrun.models.backbones.smallcnn.smallcnn", "widths": [3, 4]}


def saved(stage: str, file: str, **content: Any) -> Path:
    """Write a run with one checkpoint, without training."""
    config = {"backbone": BACKBONE, "dataset": {"image_size": 16}, **content.pop("config", {})}
    summary = {"stage": stage, "status": "finished", "config": config, "overrides": [], "wall_time_seconds": 1.0}
    Path("run").mkdir(exist_ok=True)
    write_json(Path("run/summary.json"), summary)
    checkpoint.save(Path("run", file), {"config": config, "stage": stage, **content})
    return Path("run")


def prefixed(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{k}": v for k, v in module.state_dict().items()}


def unchanged(load: Callable[[Path], Trained], run: Path) -> Trained:
    """Load a network, which changes no random number and is ready for inference."""
    before = torch.get_rng_state()
    trained = load(run)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(m.training for m in (trained.classifier or trained.encoder).modules())
    return trained


@pytest.mark.parametrize("pooling", ["average", "grid"])
def test_an_encoder_is_loaded_with_its_pooling_mean_and_weights(pooling: Pooling) -> None:
    encoder = build_encoder(BACKBONE, 16, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6], pooling).eval()
    more = {} if pooling == "average" else {"config": {"pooling": pooling}}  # runs of 0.1.0 do not have the key
    run = saved("pretrain", "last.pt", model=prefixed(encoder, "encoder."), **more)
    trained = unchanged(load_network, run)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(trained.encoder(images), encoder(images))
    assert (trained.path, trained.classifier, trained.class_names) == (run / "last.pt", None, [])
    assert (trained.temperature, trained.confidence_threshold) == (1.0, None)
    with pytest.raises(UserError, match=r"run/best\.pt"):
        load_classifier(run)


@pytest.mark.parametrize("kind", ["linear", "knn"])
@pytest.mark.parametrize("metrics", [{"val/temperature": 2.5, "val/confidence_threshold": 0.8}, {}, None])
def test_a_classifier_is_the_best_one_with_its_calibration(kind: str, metrics: dict[str, float] | None) -> None:
    encoder = build_encoder(BACKBONE, 16, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    classifier: Classifier | KNNClassifier = Classifier(encoder, 3)
    if kind == "knn":
        classifier = KNNClassifier(encoder, 3, 12)
        classifier.bank.copy_(torch.rand(12, 4))
        classifier.labels.copy_(torch.arange(12) % 3)
    content = {"class_names": ["b", "a", "c"], "downstream": "classifier.encoder"}
    model = prefixed(classifier, "classifier.")
    saved("finetune", "last.pt", **content, model={k: torch.zeros_like(v) for k, v in model.items()})
    run = saved("finetune", "best.pt", **content, model=model, **({} if metrics is None else {"metrics": metrics}))
    images = torch.rand(2, 3, 16, 16)
    expected = classifier.eval().probabilities(images)
    for load in (load_network, load_classifier):
        trained = unchanged(load, run)
        assert trained.classifier is not None
        assert torch.equal(trained.classifier.probabilities(images), expected)
        assert trained.encoder is trained.classifier.encoder
        assert (trained.path, trained.class_names) == (run / "best.pt", ["b", "a", "c"])
        calibration = (2.5, 0.8) if metrics else (1.0, None)
        assert (trained.temperature, trained.confidence_threshold) == calibration


def test_a_checkpoint_without_a_classifier_or_of_another_program_is_refused() -> None:
    encoder = build_encoder(BACKBONE, 16, [0.5] * 3, [0.5] * 3)
    run = saved("finetune", "best.pt", model=prefixed(encoder, "encoder."))
    with pytest.raises(UserError, match=r"best\.pt has no classifier: train one with sslrun finetune init=run"):
        load_classifier(run)
    torch.save({"model": prefixed(Classifier(encoder, 2), "classifier."), "class_names": ["a", "b"]}, "run/best.pt")
    with pytest.raises(UserError, match="no classifier"):
        load_classifier(run)
