"""Trained networks, read back from their runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslrun.base.errors import UserError
from sslrun.models.classifier import Classifier, KNNClassifier
from sslrun.models.encoder import Encoder, build_encoder
from sslrun.models.weights import below, encoder_of, load_state
from sslrun.runs import checkpoint
from sslrun.runs.find import read_summary


@dataclass
class Pretrained:
    """An encoder read from a pretrain run.

    Attributes:
        encoder: gives features.
        config: of the run.
        path: of the checkpoint.
    """

    encoder: Encoder
    config: dict[str, Any]
    path: Path


@dataclass
class Trained:
    """A classifier read from a run.

    Attributes:
        model: gives probabilities.
        config: of the run.
        class_names: in the order of the probabilities.
        path: of the checkpoint.
        temperature: by which its logits are to be divided, fitted on validation; 1 where there was none.
        sure_above: a confidence above which 95 % were right on validation; None where there is none such.
    """

    model: Classifier | KNNClassifier
    config: dict[str, Any]
    class_names: list[str]
    path: Path
    temperature: float
    sure_above: float | None

    @property
    def encoder(self) -> Encoder:
        """Return what gives the features."""
        return self.model.encoder


def load_network(directory: Path) -> Pretrained | Trained:
    """Read what a run has learned: the classifier of a finetuned one, the encoder of a pretrained one.

    Raises:
        UserError: no checkpoint there.
    """
    if read_summary(directory)["stage"] == "finetune":
        return load_classifier(directory)
    path, content = checkpoint.newest(directory)
    config = content["config"]
    encoder = build_encoder(config["backbone"], config["dataset"]["image_size"], [0.5] * 3, [0.5] * 3)
    load_state(encoder, encoder_of(content), path)
    return Pretrained(encoder.eval(), config, path)


def load_classifier(directory: Path) -> Trained:
    """Read the best classifier of a finetuned run.

    Raises:
        UserError: no checkpoint there, or not a classifier's.
    """
    path = directory / checkpoint.BEST
    content = checkpoint.load(path)
    state = below(content.get("model", {}), "classifier.") if checkpoint.OURS in content else {}
    if not state or "class_names" not in content:
        raise UserError(f"{path} holds no classifier: sslrun finetune init={directory} makes one")
    config, names = content["config"], content["class_names"]
    encoder = build_encoder(
        config["backbone"], config["dataset"]["image_size"], [0.5] * 3, [0.5] * 3, config.get("readout", "average")
    )
    if "bank" in state:
        model: Classifier | KNNClassifier = KNNClassifier(encoder, len(names), len(state["bank"]))
    else:
        model = Classifier(encoder, len(names))
    load_state(model, state, path)
    model.eval()
    measured = content.get("metrics") or {}
    return Trained(model, config, names, path, measured.get("val/temperature", 1.0), measured.get("val/sure_above"))
