"""Where a network starts, and what it takes from there: weights, backbone, preprocessing, class names."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sslrun import checkpoint
from sslrun.backbones import Encoder, Readout, build_encoder, for_imagenet, load_imagenet
from sslrun.checkpoint import ENCODER, State
from sslrun.classifier import Classifier, KNNClassifier
from sslrun.config import Node, UserError, build, compose_nodes, refuse_foreign
from sslrun.console import log
from sslrun.data.dataset import Dataset, describe, shared
from sslrun.device import Device
from sslrun.run import find, read_summary

PREPROCESSING = ("image_size", "resize", "channels", "mean", "std")


@dataclass
class Start:
    """Where a network starts.

    Attributes:
        name: `scratch`, `imagenet`, the pretext task of the run, or the file's name.
        path: of the checkpoint, if there is one.
        encoder: its weights, if it is a checkpoint of ours.
        config: of the run that the checkpoint is from; empty for a bare file.
    """

    name: str
    path: Path | None
    encoder: State | None
    config: dict[str, Any]


def find_start(init: str, backbone: Node, dataset: Node) -> Start:
    """Decide where a finetuned network starts.

    Args:
        init: `latest`, a pretext task's name (its latest run), `scratch`, `imagenet`, a run directory, or a file.
        backbone, dataset: what was asked for; `from_checkpoint` asks for nothing.

    Raises:
        UserError: there is no such run or file, or it has another backbone.
    """
    runs = find(["pretrain"], parts=True)
    if init in ("scratch", "imagenet"):
        # The same network on the same pictures as the newest pretraining, unless others are asked for.
        latest = _newest(runs, backbone, dataset, None) or _newest(runs, {}, dataset, None)
        if latest:
            refuse_foreign(latest[1]["config"], latest[0])
        return Start(init, None, None, latest[1]["config"] if latest else {})
    if os.path.isfile(init) or os.path.exists(os.path.join(init, "summary.json")) or os.sep in init:
        path = Path(init)
        if not path.exists():
            raise UserError(f"init={init}: no such run or file")
    else:
        found = _newest(runs, backbone, dataset, None if init == "latest" else init)
        if found is None:
            raise UserError(_no_run(init, runs, backbone, dataset))
        path = found[0]
        log.info("Starting from %s", path)
    if path.is_dir():
        summary = read_summary(path)
        if summary["status"] != "finished":
            log.warning("%s did not finish (%s): its last checkpoint is used.", path, summary["status"])
        path, content = checkpoint.newest(path)
    else:
        content = checkpoint.load(path)
    if checkpoint.OURS not in content:
        return Start(path.stem, path, None, {})
    config = content["config"]
    asked, has = backbone.get("_target_"), config["backbone"]["_target_"]
    if asked and asked != has:
        raise UserError(_differs("backbone", short_name(asked), short_name(has), path))
    encoder = checkpoint.part(content["model"], *ENCODER)
    name = short_name(config["pretext"]["_target_"]) if "pretext" in config else "finetune"
    return Start(name, path, encoder, config)


def _newest(
    runs: list[tuple[Path, dict[str, Any]]], backbone: Node, dataset: Node, pretext: str | None
) -> tuple[Path, dict[str, Any]] | None:
    for path, summary in reversed(runs):
        config = summary["config"]
        if not checkpoint.there_is_one(path) or summary["status"] != "finished":
            continue
        same = [
            not backbone.get("_target_") or backbone["_target_"] == config["backbone"]["_target_"],
            not dataset.get("_target_") or _same_pictures(dataset, config["dataset"]),
            pretext is None or pretext == short_name(config["pretext"]["_target_"]),
        ]
        if all(same):
            return path, summary
    return None


def _same_pictures(a: Node, b: Node) -> bool:
    roots = [str(Path(os.path.expanduser(n["root"])).resolve()) if n.get("root") else None for n in (a, b)]
    return a["_target_"] == b["_target_"] and roots[0] == roots[1]


def short_name(target: str) -> str:
    """Return the name on the command line of what a `_target_` builds: `sslrun.pretext.simclr.SimCLR` -> `simclr`."""
    module, _, name = target.rpartition(".")
    return name if name.islower() else module.rpartition(".")[2]


def _no_run(init: str, runs: list[Any], backbone: Node, dataset: Node) -> str:
    if init.endswith(".pt"):
        return f"init={init}: no such file"
    wanted = [short_name(n["_target_"]) for n in (backbone, dataset) if n.get("_target_")]
    kind = f"{'' if init == 'latest' else init + ' '}run" + (f" of {' on '.join(wanted)}" if wanted else "")
    there = (
        f"{len(runs)} other run{'s' * (len(runs) > 1)} in outputs/pretrain" if runs else "no run in outputs/pretrain"
    )
    return f"init={init}: no pretrain {kind} here ({there}): start one with sslrun pretrain, or say init=scratch"


def resolve(start: Start, backbone: Node, dataset: Node, asked: dict[str, str]) -> tuple[Node, Node]:
    """Fill in backbone and data set from the run that a network starts from.

    A checkpoint's backbone and preprocessing are kept, whatever the defaults of the command line are.

    Args:
        asked: what stands on the command line, as key -> value.

    Returns:
        The complete `backbone` and `dataset` nodes.

    Raises:
        UserError: something else was asked for explicitly, or nothing says which backbone or data set it is.
    """
    if start.path is not None and not start.config:
        for what, node in (("backbone", backbone), ("dataset", dataset)):
            if not node.get("_target_"):
                raise UserError(f"{start.path} holds weights alone and does not say of which {what}: add {what}=...")
        return backbone, dataset
    if start.config:
        has_backbone, has_dataset = start.config["backbone"], start.config["dataset"]
    else:
        has_backbone, has_dataset = compose_nodes("pretrain", "backbone", "dataset")
        if not dataset.get("_target_"):
            log.info("No pretrain run to take the data set from: it is %s.", describe(has_dataset))
    same = backbone.get("_target_") in (None, has_backbone["_target_"])
    chosen = overlaid("backbone", has_backbone if same else backbone, backbone, asked)
    if start.path is not None and chosen != has_backbone:
        key = next(k for k in chosen if chosen[k] != has_backbone.get(k))
        raise UserError(_differs(f"backbone.{key}", chosen[key], has_backbone.get(key), start.path))
    data = overlaid("dataset", dataset if dataset.get("_target_") else has_dataset, dataset, asked)
    if start.config:
        data = preprocessing_of(data, has_dataset, asked, start.path)
    return (for_imagenet(chosen, data["image_size"]) if start.name == "imagenet" else chosen), data


def overlaid(group: str, node: Node, asked_for: Node, asked: dict[str, str]) -> Node:
    """Return a node with the keys that were asked for on the command line, or beside `from_checkpoint`."""
    beside = asked_for.get("_target_") is None
    wins = {k for k, v in asked_for.items() if f"{group}.{k}" in asked or (beside and v is not None)}
    return {**node, **{k: asked_for[k] for k in wins}}


def preprocessing_of(dataset: Node, has: Node, asked: dict[str, str], source: Path | None) -> Node:
    """Return a data set's node with the preprocessing of a checkpoint, or of a run to be compared with (no source).

    Raises:
        UserError: a checkpoint has another image size, resizing, channels or normalisation than was asked for.
    """
    for key in PREPROCESSING:
        if source is not None and f"dataset.{key}" in asked and dataset[key] != has[key]:
            raise UserError(_differs(f"dataset.{key}", dataset[key], has[key], source))
    return {**dataset, **{k: has[k] for k in PREPROCESSING if f"dataset.{k}" not in asked}}


def _differs(key: str, value: Any, has: Any, source: Path | str) -> str:
    return f"{key}={value} was asked for, but {source} was made with {has}: leave {key} away, or pretrain anew"


def normalization(dataset: Node, data: Dataset) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of the three channels: those given, else those of 10,000 of the pictures."""
    options = shared(dataset)
    some = data.images.take(np.arange(0, len(data), max(1, len(data) // 10_000)))
    sums, squares = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for batch in some.split(256):
        pixels = batch.double() / 255
        sums += pixels.sum((0, 2, 3))
        squares += pixels.square().sum((0, 2, 3))
    n = len(some) * some.image_size**2
    mean = options.mean or (sums / n).tolist()
    std = options.std or (squares / n - (sums / n).square()).clamp(min=0).sqrt().clamp(min=0.01).tolist()
    return [round(m, 4) for m in mean], [round(s, 4) for s in std]


def encoder_at(start: Start, backbone: Node, dataset: Node, data: Dataset, readout: Readout = "average") -> Encoder:
    """Build an encoder with the weights that it starts from."""
    encoder = build_encoder(backbone, dataset["image_size"], *normalization(dataset, data), readout)
    if start.name == "imagenet":
        load_imagenet(encoder)
    elif start.encoder:
        checkpoint.load_state(encoder, start.encoder, start.path or start.name)
    elif start.path is not None:  # a bare file: the backbone's own keys, or a whole encoder's
        weights = checkpoint.bare(checkpoint.load(start.path), start.path)
        module: nn.Module = encoder if "mean" in weights else encoder.backbone
        checkpoint.load_state(module, weights, start.path)
    return encoder


def find_run(run: str, stages: Sequence[str] = ("finetune",)) -> Path:
    """Return the directory of a run of one of these stages: the `latest` that finished, or the one named.

    Raises:
        UserError: there is none, or it is of another stage.
    """
    if run != "latest":
        summary = read_summary(Path(run))
        if summary["stage"] not in stages:
            hint = f"sslrun finetune init={run} makes one" if summary["stage"] == "pretrain" else "name another run"
            without = "classifier" if "pretrain" not in stages else "network of its own"
            raise UserError(f"{run} is a {summary['stage']} run, without a {without}: {hint}")
        if summary["status"] != "finished":
            log.warning("%s did not finish (%s): its best checkpoint so far is used.", run, summary["status"])
        return Path(run)
    finished = [path for path, summary in find(stages) if summary["status"] == "finished"]
    if not finished:
        raise UserError(f"no finished {' or '.join(stages)} run in outputs: sslrun {stages[0]} makes one")
    log.info("Using %s", finished[-1])
    return finished[-1]


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
    checkpoint.load_state(encoder, checkpoint.part(content["model"], *ENCODER), path)
    return Pretrained(encoder.eval(), config, path)


def load_classifier(directory: Path) -> Trained:
    """Read the best classifier of a finetuned run.

    Raises:
        UserError: no checkpoint there, or not a classifier's.
    """
    path = directory / checkpoint.BEST
    content = checkpoint.load(path)
    state = checkpoint.part(content.get("model", {}), "classifier.") if checkpoint.OURS in content else {}
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
    checkpoint.load_state(model, state, path)
    model.eval()
    measured = content.get("metrics") or {}
    return Trained(model, config, names, path, measured.get("val/temperature", 1.0), measured.get("val/sure_above"))


def inference_device(node: Node, trained: Pretrained | Trained) -> Device:
    """Build a device that computes with a network as it was trained: fp32 stays fp32, the memory format stays."""
    device: Device = build(node)
    was = trained.config["device"]
    memory_format = device.formats[0] if len(device.formats) == 1 else was.get("memory_format", device.formats[0])
    fp32 = node["precision"] == "auto" and was["precision"] == "fp32"
    device.use("fp32" if fp32 else device.precision, memory_format)
    return device
