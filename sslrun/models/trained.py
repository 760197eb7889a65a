"""Trained networks, read back from their runs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sslrun.base.errors import UserError
from sslrun.config.commands import WITH_CLASSIFIER
from sslrun.models.classifier import Classifier, KNNClassifier
from sslrun.models.encoder import Encoder, build_encoder
from sslrun.models.weights import below, encoder_of, load_state, prefix_of
from sslrun.runs import checkpoint
from sslrun.runs.find import BEST, read_summary


@dataclass
class Trained:
    """What a run has learned.

    Attributes:
        encoder: gives features.
        config: of the run.
        path: of the checkpoint.
        classifier: gives probabilities; None of a run that only pretrained.
        class_names: in the order of the probabilities.
        temperature: by which its logits are to be divided, fitted on validation; 1 where there was none.
        confidence_threshold: a confidence above which 95 % were right on validation; None where there is none such.
    """

    encoder: Encoder
    config: dict[str, Any]
    path: Path
    classifier: Classifier | KNNClassifier | None = None
    class_names: list[str] = field(default_factory=list)
    temperature: float = 1.0
    confidence_threshold: float | None = None


def load_network(directory: Path) -> Trained:
    """Read what a run has learned: the best classifier of a finetuned one, the encoder of a pretrained one.

    The random state stays as it was.

    Raises:
        UserError: no checkpoint there.
    """
    if read_summary(directory)["stage"] in WITH_CLASSIFIER:
        return load_classifier(directory)
    path, content = checkpoint.newest_intact(directory)
    with torch.random.fork_rng(devices=[]):
        encoder = _encoder(content["config"])
    load_state(encoder, encoder_of(content), path)
    return Trained(encoder.eval(), content["config"], path)


def load_classifier(directory: Path) -> Trained:
    """Read the best classifier of a finetuned run; the random state stays as it was.

    Raises:
        UserError: no checkpoint there, or not a classifier's.
    """
    path = directory / BEST
    content = checkpoint.load(path)
    ours = checkpoint.OURS in content and "class_names" in content
    state = below(content.get("model", {}), prefix_of(content).removesuffix("encoder.")) if ours else {}
    if not state:
        raise UserError(f"{path} holds no classifier: sslrun finetune init={directory} makes one")
    config, names = content["config"], content["class_names"]
    with torch.random.fork_rng(devices=[]):
        encoder = _encoder(config)
        nearest = KNNClassifier(encoder, len(names), len(state["bank"])) if "bank" in state else None
        classifier = nearest or Classifier(encoder, len(names))
    load_state(classifier, state, path)
    classifier.eval()
    metrics = content.get("metrics") or {}
    temperature, confidence_threshold = metrics.get("val/temperature", 1.0), metrics.get("val/confidence_threshold")
    return Trained(encoder, config, path, classifier, names, temperature, confidence_threshold)


def _encoder(config: dict[str, Any]) -> Encoder:
    """Build the encoder of a run, whose weights, mean and standard deviation are to be loaded."""
    pooling = config.get("pooling", "average")
    return build_encoder(config["backbone"], config["dataset"]["image_size"], [0.5] * 3, [0.5] * 3, pooling)
