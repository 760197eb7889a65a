"""`sslrun finetune`: make a classifier from few labels."""

import hashlib
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field

from sslrun import calibration, checkpoint, modes
from sslrun.backbones import Encoder, Readout, build_encoder
from sslrun.classifier import Classifier, Finetuning, KNNClassifier, probabilities
from sslrun.config import Count, DatasetNode, Fraction, Node, Positive, PositiveInt, UserError, build, function
from sslrun.console import log
from sslrun.data import splits
from sslrun.data.dataset import Dataset, describe, labelled, load_train
from sslrun.data.splits import check_amount
from sslrun.device import Device
from sslrun.probe import better_readout, fit_head, labelled_features
from sslrun.report import figures
from sslrun.run import Run
from sslrun.start import Start, encoder_at, find_start, normalization, resolve, short_name
from sslrun.study.choice import choose, searched
from sslrun.train import total_steps


def finetune(
    run: Run,
    *,
    init: str,
    mode: Literal["auto", "finetune", "probe", "knn"],
    label_fraction: Positive | None,
    labels_per_class: PositiveInt | None,
    search: list[str],
    fold: Annotated[list[Count], Field(min_length=2, max_length=2)] | None,
    backbone: Node,
    dataset: DatasetNode,
    augment: Node,
    readout: Readout | Literal["auto"],
    freeze_fraction: Fraction,
    backbone_rate: Positive,
    freeze_batch_norm_below: Count,
    label_smoothing: Fraction,
    device: Node,
    optimizer: Node,
    train: Node,
    seed: Count,
    subset_seed: Count,
    resume: str | None,
) -> dict[str, Any]:
    """Train a classifier on a stratified subset of the labels, and choose the best of its states on validation.

    Returns:
        What goes into the summary.

    Raises:
        UserError: nothing to start from, one class, or more labels asked for than there are.
    """
    check_amount(label_fraction, run.asked)
    if run.resumed and mode not in ("auto", "finetune"):
        raise UserError(f"mode={mode} has no steps to go on with: run it anew")
    hardware = build(device)
    if run.resumed and mode == "finetune":
        begin = Start(run.summary["init"], None, None, run.summary["config"])
    else:
        begin = find_start(init, backbone, dataset)
    backbone, dataset = resolve(begin, backbone, dataset, run.asked)
    search = searched(search, [])
    if search and mode != "auto":
        raise UserError(f"search= is of mode=auto, which chooses among its settings: leave mode={mode} or search= away")
    if begin.name == "scratch" and mode == "auto" and not search:
        mode = "finetune"  # there is nothing to choose among
    if not run.resumed:
        init = str(begin.path or begin.name)  # as it must be said to get the same start again
    run.settle(backbone=backbone, dataset=dataset, init=init, mode=mode, search=search)
    data, val = load_train(dataset)
    chosen = labelled(data, dataset, label_fraction, labels_per_class, subset_seed)
    if fold is not None:
        chosen, held = _without_fold(chosen, fold[0], fold[1], subset_seed)
        val = held if val is None else val + held
    torch.manual_seed(seed)
    first: Readout = "average" if readout == "auto" else readout
    if run.resumed:  # the weights come from the run's own last checkpoint
        encoder = build_encoder(backbone, dataset["image_size"], *normalization(dataset, data), first)
    else:
        encoder = encoder_at(begin, backbone, dataset, data, first)
    fastest = modes.choose(hardware, backbone, dataset["image_size"], train["batch_size"])
    hardware.put(encoder)
    strength = None  # of the logistic regression: searched for when it is fitted
    if readout == "auto" and mode != "auto":
        scores, strength = better_readout(encoder, chosen, val, hardware, seed)
        run.settle(readout=encoder.readout)
        run.note(readouts=scores)
    config = run.settle(device=device | fastest)
    hardware.compile(encoder)
    run.refuse_other_data(data.fingerprint(), len(data))
    _tell(run, begin, hardware, data, chosen, val)
    keep = {"stage": "finetune", "config": config, "class_names": data.class_names}
    if mode == "auto":
        weights = hashlib.sha256(begin.path.read_bytes()).hexdigest() if begin.path else begin.name
        pictures = [data.fingerprint(), val.fingerprint() if val else ""]
        return choose(run, config, pictures, weights, len(val) if val else 0, _fewest(chosen))
    if mode == "finetune":
        return _finetune(run, encoder, chosen, val, hardware, keep, strength, config["augment"], optimizer, train, seed,
                         freeze_fraction, backbone_rate, freeze_batch_norm_below, label_smoothing)  # fmt: skip
    classifier = _without_training(mode, encoder, chosen, val, hardware, seed, strength)
    metrics = _validated(classifier, val, hardware)
    state = {f"classifier.{k}": v for k, v in classifier.state_dict().items()}
    for name in (checkpoint.LAST, checkpoint.BEST):
        checkpoint.save(run.directory / name, {**keep, "step": 0, "metrics": metrics, "model": state})
    run.metrics(0, metrics)
    return metrics


def _tell(run: Run, begin: Start, device: Device, data: Dataset, chosen: Dataset, val: Dataset | None) -> None:
    """Say what is about to be done, and put it into the summary."""
    config = run.summary["config"]
    used = {"train": len(chosen), "validation": len(val) if val else 0}
    doing = {"auto": "The best", "finetune": "Finetuning", "probe": "Linear probe", "knn": "Nearest neighbours"}
    log.info(
        "%s of %s from %s on %d labels of %s (%d more for validation); %s, %s, %s",
        doing[config["mode"]], short_name(config["backbone"]["_target_"]), config["init"], used["train"],
        describe(config["dataset"]), used["validation"], device.describe(), device.precision, device.memory_format,
    )  # fmt: skip
    run.note(
        init=begin.name,
        source=config["init"],
        mode=config["mode"],
        backbone=short_name(config["backbone"]["_target_"]),
        dataset=describe(config["dataset"]),
        label_fraction=config["label_fraction"] if config["labels_per_class"] is None else None,
        labels_per_class=config["labels_per_class"],
        labels=used,
        seeds={"training": config["seed"], "subset": config["subset_seed"], "split": config["dataset"]["split_seed"]},
        data_fingerprint=data.fingerprint(),
        subset_fingerprint=chosen.fingerprint(),
        device=device.describe(),
        precision=device.precision,
        memory_format=device.memory_format,
    )


def _fewest(data: Dataset) -> int:
    assert data.labels is not None
    return min(splits.counts(data.labels.numpy()).values())


def _without_fold(data: Dataset, k: int, n: int, seed: int) -> tuple[Dataset, Dataset]:
    """Return labelled pictures without the k-th of n parts of each class, and that part."""
    assert data.labels is not None
    rows = splits.part_of(data.labels.numpy(), k, n, seed)
    return data.take(np.setdiff1d(np.arange(len(data)), rows)), data.take(rows)


def _finetune(
    run: Run, encoder: Encoder, data: Dataset, val: Dataset | None, device: Device, keep: dict[str, Any],
    strength: float | None, augment: Node, optimizer: Node, train: Node, seed: int, freeze_fraction: float,
    backbone_rate: float, freeze_batch_norm_below: int, label_smoothing: float,
) -> dict[str, Any]:  # fmt: skip
    """Start the head from logistic regression where the features are pretrained; then train everything."""
    assert data.labels is not None
    classifier = Classifier(encoder, len(data.class_names))
    pretrained = keep["config"]["init"] != "scratch"
    if pretrained and not run.resumed:
        fit_head(
            classifier,
            *labelled_features(encoder, data, device),
            labelled_features(encoder, val, device) if val else None,
            seed,
            strength,
        )
    steps = total_steps(len(data), train["epochs"], train["steps"], train["batch_size"], quiet=True)
    model = Finetuning(
        classifier,
        build(augment),
        label_smoothing,
        freeze_steps=round(freeze_fraction * steps) if pretrained else 0,
        freeze_batch_norm=pretrained and len(data) < freeze_batch_norm_below,
        backbone_rate=backbone_rate if pretrained else 1.0,
    )
    if not run.is_part:
        figures.views_figure(run, model, figures.some_of(data.images, seed), seed)
    device.put(model)
    fit = function(train)
    result = fit(
        model, device.hold(data.images), data.labels.to(device.torch), run, device, optimizer,
        lambda: _validated(classifier, val, device), "val/accuracy", seed, keep,
    )  # fmt: skip
    if not run.is_part:
        figures.curves_figure(run)
    best = checkpoint.load(run.directory / checkpoint.BEST)
    return result | best["metrics"]


def _without_training(
    mode: str,
    encoder: Encoder,
    data: Dataset,
    val: Dataset | None,
    device: Device,
    seed: int,
    strength: float | None,
) -> Classifier | KNNClassifier:
    bank, labels = labelled_features(encoder, data, device)
    if mode == "knn":
        nearest = KNNClassifier(encoder, len(data.class_names), len(bank))
        nearest.bank.copy_(bank)
        nearest.labels.copy_(labels)
        device.put(nearest)
        return nearest
    classifier = Classifier(encoder, len(data.class_names))
    fit_head(classifier, bank, labels, labelled_features(encoder, val, device) if val else None, seed, strength)
    device.put(classifier)
    return classifier


def _validated(classifier: Classifier | KNNClassifier, val: Dataset | None, device: Device) -> dict[str, float]:
    if val is None:
        return {}
    assert val.labels is not None
    p, labels = probabilities(classifier, val.images, device).numpy(), val.labels.numpy()
    temperature = calibration.fit_temperature(p, labels)
    sure = calibration.threshold(calibration.tempered(p, temperature), labels)
    return {
        "val/accuracy": float((p.argmax(1) == labels).mean()),
        "val/loss": calibration.log_loss(p, labels),
        "val/temperature": temperature,
        **({} if sure is None else {"val/sure_above": sure}),
    }
