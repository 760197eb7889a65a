"""`sslrun finetune`: train a classifier on few labels."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.base.files import file_hash
from sslrun.base.text import counted, interval, percent
from sslrun.config.build import build, built_settings
from sslrun.config.compose import group_choices
from sslrun.config.nodes import short_name
from sslrun.config.types import Count, Fraction, FromCheckpoint, Node, Positive, PositiveInt
from sslrun.data.balance import Balance, balanced_method, class_priors, class_ratio, effective_number_weights
from sslrun.data.dataset import Dataset, load_train
from sslrun.data.labels import LabelBudget
from sslrun.data.options import AnyDatasetNode, describe
from sslrun.device import Device
from sslrun.evaluation.intervals import wilson_interval
from sslrun.evaluation.probe import better_pooling, fit_head, labeled_features
from sslrun.evaluation.validation import SCORES, classifier_metrics, score_name
from sslrun.models.classifier import Classifier, KNNClassifier
from sslrun.models.encoder import BackboneNode, Encoder, Pooling
from sslrun.models.initialization import Network, resolve
from sslrun.models.trained import load_classifier
from sslrun.report.training import curves_figure, sample_images, views_figure
from sslrun.runs import checkpoint
from sslrun.runs.encoders import SCRATCH
from sslrun.runs.find import BEST, LAST, read_summary
from sslrun.runs.resume import CHECKPOINT, STUDY
from sslrun.runs.run import Run
from sslrun.study.choice import choose, searched
from sslrun.study.launch import user_config_dir
from sslrun.tasks.finetuning.supervised import Finetuning
from sslrun.training import autotune
from sslrun.training.batches import Batches
from sslrun.training.loop import fit
from sslrun.training.optimizers import build_optimizer
from sslrun.training.settings import Training
from sslrun.training.state import State, formatted


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """Settings of `sslrun finetune`, documented in conf/finetune.yaml."""

    init: str
    mode: Literal["auto", "finetune", "probe", "knn"]
    label_fraction: Positive | None
    labels_per_class: PositiveInt | None
    search: list[str]
    fold: Annotated[list[Count], Field(min_length=2, max_length=2)] | None
    backbone: Annotated[BackboneNode, FromCheckpoint()]
    dataset: AnyDatasetNode
    augment: Node
    pooling: Pooling | Literal["auto"]
    freeze_fraction: Fraction
    backbone_rate: Positive
    freeze_batch_norm_below: Count
    label_smoothing: Fraction
    balance: Literal["auto", Balance]
    device: Node
    optimizer: Node
    train: Node
    seed: Count
    subset_seed: Count
    resume: str | None

    @property
    def budget(self) -> LabelBudget:
        """The label budget."""
        return LabelBudget(self.label_fraction, self.labels_per_class, self.subset_seed)

    @property
    def balanced_by(self) -> Balance:
        """How classes are balanced; `auto` has to be resolved before."""
        assert self.balance != "auto"
        return self.balance


def finetune(run: Run, settings: Finetune) -> dict[str, Any]:
    """Train a classifier on a stratified subset of the labels, and keep the state with the best validation score.

    The score is the accuracy or, if classes are balanced, macro F1.

    Returns:
        Entries of the run's summary.

    Raises:
        UserError: no initial weights, a single class, or settings that exclude each other.
    """
    network, settings = _resolved(run, settings)
    device = build(settings.device)
    data, chosen, val = _labeled(settings)
    run.resolve(dataset={**settings.dataset, "range": data.range})
    settings = _balanced(run, settings, chosen)
    torch.manual_seed(settings.seed)
    encoder = network.encoder(data, "average" if settings.pooling == "auto" else settings.pooling)
    fastest = autotune.choose(device, settings.backbone, settings.dataset["image_size"], settings.train["batch_size"])
    if settings.mode == "auto":  # the encoder above only serves to report weights that do not fit now, and once
        run.resolve(device=settings.device | fastest)
        return _best(run, network, device, data, chosen, val)
    device.put(encoder)
    inverse_regularization = None  # of logistic regression: chosen when it is fitted
    if settings.pooling == "auto":
        encoder.pooling, scores, inverse_regularization = better_pooling(
            encoder, chosen, val, device, settings.seed, settings.balanced_by
        )
        run.resolve(pooling=encoder.pooling)
        run.note(poolings=scores)
    config = run.resolve(device=settings.device | fastest)
    device.compile(encoder)
    _begin(run, network, device, data, chosen, val)
    keep = {"stage": run.stage, "config": config, "class_names": data.class_names}
    if settings.mode == "finetune":
        return _trained(run, settings, encoder, chosen, val, device, keep, inverse_regularization)
    classifier = _on_frozen_features(settings, encoder, chosen, val, device, inverse_regularization)
    metrics = classifier_metrics(classifier, val, device)
    state = {f"classifier.{k}": v for k, v in classifier.state_dict().items()}
    content = {**keep, "downstream": Finetuning.downstream, "step": 0, "metrics": metrics, "model": state}
    for name in (LAST, BEST):
        checkpoint.save(run.directory / name, content)
    run.log.scalars(0, metrics)
    _log_accuracy(metrics, val)
    return metrics


def _resolved(run: Run, settings: Finetune) -> tuple[Network, Finetune]:
    """Resolve the initial weights, and the settings that depend on them."""
    if settings.mode == "auto":
        run.note(resumable=STUDY)  # as early as possible, in case of an interruption
    settings.budget.check(run.overrides)
    if run.resumed and settings.mode not in ("auto", "finetune"):
        raise UserError(f"mode={settings.mode} has no steps to resume; run it again without resume=")
    if settings.mode == "knn" and settings.balance not in ("auto", "none"):
        raise UserError(f"mode=knn does not balance classes; remove balance={settings.balance}, or set mode=probe")
    resumed_summary = run.summary if run.resumed and settings.mode == "finetune" else None
    network = resolve(settings.init, settings.backbone, settings.dataset, run.overrides, resumed_summary)
    search, mode = _searched(run, settings), settings.mode
    if search and mode != "auto":
        raise UserError(f"search= needs mode=auto, found mode={mode}; remove one of them")
    if network.kind == "scratch" and mode == "auto" and not search:
        mode = "finetune"  # the only candidate
    init = settings.init if run.resumed else network.init
    config = run.resolve(backbone=network.backbone, dataset=network.dataset, init=init, mode=mode, search=search)
    run.note(**{"auto": {"resumable": STUDY}, "finetune": {"resumable": CHECKPOINT}}.get(mode, {}))
    return network, built_settings(Finetune, config)


def _searched(run: Run, settings: Finetune) -> list[str]:
    """Return the settings to try; their keys may depend on the run's config groups, such as the optimizer."""
    config_dir = user_config_dir()
    groups = group_choices(run.summary["overrides"], config_dir)
    return searched(run.stages, settings.search, groups, config_dir)


def _labeled(settings: Finetune) -> tuple[Dataset, Dataset, Dataset | None]:
    """Return the training split, its labeled subset, and validation."""
    data, val = load_train(settings.dataset)
    chosen = data.labeled(settings.budget, describe(settings.dataset))
    if short := data.shortage(settings.budget):
        log.info("%s.", short)
    if settings.fold is not None:
        k, n = settings.fold
        chosen, fold = chosen.without_fold(k, n, settings.subset_seed)
        val = fold if val is None else val + fold
    return data, chosen, val


def _balanced(run: Run, settings: Finetune, data: Dataset) -> Finetune:
    """Resolve how classes are balanced."""
    assert data.labels is not None
    method = balanced_method(settings.balance, data.labels) if settings.mode != "knn" else "none"
    run.resolve(balance=method)
    if method != "none":
        ratio = class_ratio(data.labels)
        log.info("balance=%s: the largest class has %.3g times the labels of the smallest.", method, ratio)
    return replace(settings, balance=method)


def _best(
    run: Run, network: Network, device: Device, data: Dataset, chosen: Dataset, val: Dataset | None
) -> dict[str, Any]:
    """Choose the best mode and settings by a study."""
    _begin(run, network, device, data, chosen, val)
    weights = file_hash(network.path, "sha256").hexdigest() if network.path else network.name
    fingerprints = [data.fingerprint(), val.fingerprint() if val else ""]
    result = choose(run, fingerprints, weights, len(val) if val else 0, chosen.smallest_class_size())
    _log_accuracy(result, val)
    if not run.in_study:
        _figures_of_chosen(run, Path(result["chosen_run"]), chosen)
    return result


def _figures_of_chosen(run: Run, chosen_run: Path, data: Dataset) -> None:
    """Draw the figures of the chosen run, which has none of its own as a run of a study; a linear probe has none."""
    config = read_summary(chosen_run)["config"]
    if config["mode"] != "finetune":
        return
    classifier = load_classifier(run.directory).classifier
    assert isinstance(classifier, Classifier)
    task = Finetuning(classifier, build(config["augment"]), config["label_smoothing"], 0, False, 1.0)
    views_figure(run, task, sample_images(data.images, config["seed"]), config["seed"])
    curves_figure(run)


def _log_accuracy(metrics: dict[str, Any], val: Dataset | None) -> None:
    """Log the accuracy on validation with its 95 % CI over images."""
    if val:
        accuracy, n = metrics["val/accuracy"], len(val)
        ends = interval(*wilson_interval(round(accuracy * n), n))
        log.info("Validation accuracy %s (95 %% CI %s) on %s", percent(accuracy), ends, counted(n, "image"))


def _begin(run: Run, network: Network, device: Device, data: Dataset, chosen: Dataset, val: Dataset | None) -> None:
    """Log and note what will be trained; raise if a resumed run has other data."""
    run.refuse_other_data(data.fingerprint(), len(data))
    config = run.config
    used = {"train": len(chosen), "validation": len(val) if val else 0}
    titles = {"auto": "Best classifier", "finetune": "Finetuning", "probe": "Linear probe", "knn": "kNN classifier"}
    log.info(
        "%s of %s from %s on %s of %s (plus %d for validation); %s, %s, %s",
        titles[config["mode"]], short_name(config["backbone"]["_target_"]), config["init"],
        counted(used["train"], "label"), describe(config["dataset"]), used["validation"], device.describe(),
        device.precision, device.memory_format,
    )  # fmt: skip
    run.note(
        init=network.name,
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


def _trained(
    run: Run,
    settings: Finetune,
    encoder: Encoder,
    data: Dataset,
    val: Dataset | None,
    device: Device,
    keep: dict[str, Any],
    inverse_regularization: float | None,
) -> dict[str, Any]:
    """Initialize the head by logistic regression if the features are pretrained; then finetune the network."""
    assert data.labels is not None
    classifier = Classifier(encoder, len(data.class_names))
    training: Training = build(settings.train)
    pretrained = settings.init != SCRATCH
    if pretrained and not run.resumed:
        val_features = labeled_features(encoder, val, device) if val else None
        features, targets = labeled_features(encoder, data, device)
        fit_head(
            classifier, features, targets, val_features, settings.seed, inverse_regularization, data.groups,
            settings.balanced_by,
        )  # fmt: skip
    score, counted_labels = score_name(settings.balanced_by), (data.labels, len(data.class_names))
    task = Finetuning(
        classifier,
        build(settings.augment),
        settings.label_smoothing,
        freeze_steps=round(settings.freeze_fraction * training.total_steps(len(data))) if pretrained else 0,
        freeze_batch_norm=pretrained and len(data) < settings.freeze_batch_norm_below,
        backbone_rate=settings.backbone_rate if pretrained else 1.0,
        class_weights=effective_number_weights(*counted_labels) if settings.balanced_by == "weights" else None,
        class_priors=class_priors(*counted_labels) if settings.balanced_by == "logit" else None,
    )
    if not run.in_study:
        views_figure(run, task, sample_images(data.images, settings.seed), settings.seed)
    device.put(task)
    images, labels = data.images.on(device.torch), data.labels.to(device.torch)
    total = training.total_steps(len(images), quiet=False)
    batches = Batches(
        images, labels, training.batch_size, total, settings.seed, device, settings.balanced_by == "sampling"
    )
    optimizer = build_optimizer(settings.optimizer, task, training.learning_rate)
    state = State(run, task, optimizer, device, keep, score)
    result = fit(task, batches, optimizer, training, device, state, lambda: classifier_metrics(classifier, val, device))
    if not run.in_study:
        curves_figure(run)
    best = checkpoint.load(run.directory / BEST)
    if val:
        unchanged = ", the linear probe: finetuning did not improve on it" if pretrained and best["step"] == 0 else ""
        kept = f"step {best['step']} of {total}{unchanged}"
        log.info("Best state by validation %s: %s (%s)", SCORES[score], kept, formatted(best["metrics"]))
    _log_accuracy(best["metrics"], val)
    return {k: v for k, v in result.items() if not k.startswith("val/")} | best["metrics"]


def _on_frozen_features(
    settings: Finetune,
    encoder: Encoder,
    data: Dataset,
    val: Dataset | None,
    device: Device,
    inverse_regularization: float | None,
) -> Classifier | KNNClassifier:
    """Fit a linear probe or a kNN classifier on the features of the frozen encoder."""
    bank, labels = labeled_features(encoder, data, device)
    if settings.mode == "knn":
        knn = KNNClassifier(encoder, len(data.class_names), len(bank))
        knn.bank.copy_(bank)
        knn.labels.copy_(labels)
        device.put(knn)
        return knn
    classifier = Classifier(encoder, len(data.class_names))
    val_features = labeled_features(encoder, val, device) if val else None
    fit_head(
        classifier, bank, labels, val_features, settings.seed, inverse_regularization, data.groups, settings.balanced_by
    )
    device.put(classifier)
    return classifier
