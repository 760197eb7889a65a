"""Trained networks, loaded from their runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sslrun.base.errors import UserError
from sslrun.config.commands import WITH_CLASSIFIER
from sslrun.config.types import Node
from sslrun.data.labels import LabelBudget
from sslrun.models.classifier import Classifier, KNNClassifier
from sslrun.models.encoder import Encoder, build_encoder
from sslrun.models.weights import encoder_of, load_state, prefix_of, strip_prefix
from sslrun.run import checkpoint
from sslrun.run.find import BEST, read_summary

ORIGIN = ("weights", "teacher", "labels_seen")  # keys of `origin_of`


@dataclass
class Trained:
    """A trained network of a run.

    Attributes:
        encoder: computes the features.
        config: of the run.
        path: of the checkpoint.
        classifier: computes the probabilities; None after pretraining.
        class_names: in the order of the probabilities.
        temperature: divisor of the logits, fitted on validation; 1 without validation.
        confidence_threshold: confidence above which the accuracy should be 95 %; None if there is none.
        metrics: of the classifier on validation.
        origin: see `origin_of`.
    """

    encoder: Encoder
    config: dict[str, Any]
    path: Path
    classifier: Classifier | KNNClassifier | None = None
    class_names: list[str] = field(default_factory=list)
    temperature: float = 1.0
    confidence_threshold: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)


def load_network(directory: Path) -> Trained:
    """Load a run's network: the best classifier after finetuning, the encoder after pretraining.

    The random state does not change.

    Raises:
        UserError: there is no checkpoint.
    """
    if read_summary(directory)["stage"] in WITH_CLASSIFIER:
        return load_classifier(directory)
    path, content = checkpoint.newest_intact(directory)
    with torch.random.fork_rng(devices=[]):
        encoder = _encoder(content["config"])
    load_state(encoder, encoder_of(content), path)
    return Trained(encoder.eval(), _with_range(content["config"]), path, origin=origin_of(content))


def load_classifier(directory: Path) -> Trained:
    """Load the best classifier of a finetuned run; the random state does not change.

    Raises:
        UserError: there is no checkpoint, or it has no classifier.
    """
    path = directory / BEST
    content = checkpoint.load(path)
    ours = checkpoint.OURS in content and "class_names" in content
    state = strip_prefix(content.get("model", {}), prefix_of(content).removesuffix("encoder.")) if ours else {}
    if not state:
        raise UserError(f"{path} has no classifier: train one with sslrun finetune init={directory}")
    config, names = _with_range(content["config"]), content["class_names"]
    with torch.random.fork_rng(devices=[]):
        encoder = _encoder(config)
        knn = KNNClassifier(encoder, len(names), len(state["bank"])) if "bank" in state else None
        classifier = knn or Classifier(encoder, len(names))
    load_state(classifier, state, path)
    classifier.eval()
    metrics = content.get("metrics") or {}
    temperature, confidence_threshold = metrics.get("val/temperature", 1.0), metrics.get("val/confidence_threshold")
    origin = origin_of(content)
    return Trained(encoder, config, path, classifier, names, temperature, confidence_threshold, metrics, origin)


def origin_of(content: Mapping[str, Any]) -> Node:
    """Return from what the encoder of a checkpoint was trained, as summaries and checkpoints have it.

    Returns:
        `weights`, source and license of the published weights at its start; `teacher`, those of the network whose
        features it learned; `labels_seen`, the label budgets that had an influence on it. Only those that there are.
    """
    config = content["config"]
    origin = {k: content[k] for k in ORIGIN if k in content}
    if "label_fraction" in config and config.get("mode") not in ("probe", "knn"):  # whose encoder has seen no labels
        used = LabelBudget(config.get("labels"), config["label_fraction"], config["labels_per_class"]).text
        origin["labels_seen"] = ", ".join([*filter(None, [origin.get("labels_seen")]), used])
    return origin


def _with_range(config: dict[str, Any]) -> dict[str, Any]:
    """Return a run's config with `dataset.range`, which older runs lack: they measured none."""
    return {**config, "dataset": {"range": None, **config["dataset"]}}


def _encoder(config: dict[str, Any]) -> Encoder:
    """Build a run's encoder, without its weights, mean and standard deviation."""
    pooling = config.get("pooling", "average")
    return build_encoder(config["backbone"], config["dataset"]["image_size"], [0.5] * 3, [0.5] * 3, pooling)
