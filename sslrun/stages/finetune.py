"""`sslrun finetune`: train a classifier on few labels."""

import time
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig

from sslrun.base import processes
from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.base.machine import is_first
from sslrun.base.text import counted
from sslrun.config.build import build, built_settings
from sslrun.config.compose import given_keys, group_choices
from sslrun.config.grammar import key_of
from sslrun.config.nodes import network_name
from sslrun.config.types import Count, Fraction, FromCheckpoint, Node, Positive, PositiveInt
from sslrun.data.balance import Balance, balanced_method, class_ratio
from sslrun.data.labeled import Labeled, Validation, load_labeled
from sslrun.data.labels import LabelBudget
from sslrun.data.options import AnyDatasetNode, describe
from sslrun.device import Device
from sslrun.evaluation.novelty import NOVELTY, Novelty
from sslrun.evaluation.validation import SCORES, accuracy_text, classifier_metrics, score_name
from sslrun.models.classifier import Classifier, KNNClassifier
from sslrun.models.encoder import BackboneNode, Pooling
from sslrun.models.initialization import Network, refuse_unused_weights, resolve, unchanged
from sslrun.models.trained import ORIGIN, load_classifier
from sslrun.report.run_page import finetuning_text, neighbors_figure, publish
from sslrun.report.training import curves_figure, sample_images, views_figure
from sslrun.run import checkpoint
from sslrun.run.encoders import AUTO, PRETRAINED, SCRATCH
from sslrun.run.find import BEST, LAST, has_checkpoint
from sslrun.run.loggers import LoggerName
from sslrun.run.resume import STUDY
from sslrun.run.run import Run
from sslrun.stages.next import next_command
from sslrun.study.choice import searched
from sslrun.study.launch import user_config_dir
from sslrun.tasks.finetuning.supervised import Finetuning
from sslrun.training import autotune, jobs
from sslrun.training.batches import Batches
from sslrun.training.candidates import (
    KNN,
    PROBE,
    TUNED,
    Candidate,
    Folds,
    candidates_of,
    folds_of,
    frozen_network,
)
from sslrun.training.choosing import choose_candidate, in_time
from sslrun.training.folds import finetuning
from sslrun.training.frozen import Frozen
from sslrun.training.initial import choose_initialization
from sslrun.training.loop import fit
from sslrun.training.optimizers import build_optimizer
from sslrun.training.settings import Training, default_steps
from sslrun.training.state import State, formatted


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """Settings of `sslrun finetune`, documented in conf/finetune.yaml."""

    init: str
    mode: Literal["auto", "finetune", "probe", "knn"]
    labels: PositiveInt | None
    label_fraction: Positive | None
    labels_per_class: PositiveInt | None
    validation: Literal["auto"] | Validation
    search: list[str]
    backbone: Annotated[BackboneNode, FromCheckpoint()]
    dataset: AnyDatasetNode
    augment: Node
    pooling: Pooling | Literal["auto"]
    freeze_fraction: Fraction
    freeze_batch_norm: bool
    head_rate: Positive
    backbone_rate: Positive
    layer_decay: Positive
    label_smoothing: Fraction
    balance: Literal["auto", Balance]
    device: Node
    optimizer: Node
    train: Node
    seed: Count
    subset_seed: Count
    logger: list[LoggerName]
    resume: str | None

    @property
    def budget(self) -> LabelBudget:
        """The label budget."""
        return LabelBudget(self.labels, self.label_fraction, self.labels_per_class, self.subset_seed)


def finetune(run: Run, settings: Finetune) -> dict[str, Any]:
    """Choose a classifier by cross-validation inside a label budget, or on a split outside it, and train it.

    Returns:
        Entries of the run's summary.

    Raises:
        UserError: no initial weights, too few labels, or settings that exclude each other.
    """
    network, settings = _resolved(run, settings)
    device = build(settings.device)
    keys = () if run.in_study else run.overrides  # a study passes all keys of its data set
    labeled = load_labeled(settings.dataset, settings.budget, settings.validation, keys)
    settings = _with_data(run, settings, labeled)
    result = _result(run, settings, network, labeled, device)
    if not run.in_study and is_first():
        run.note(**result)
        encoder = load_classifier(run.directory).encoder
        device.put(encoder)
        Novelty.of(encoder, labeled.pool, labeled.val, device).save(run.directory / NOVELTY)
        neighbors_figure(run, encoder, labeled.budget.images, labeled.budget.names, device, settings.seed)
        sentences = finetuning_text(run.summary, settings.dataset["image_size"])
        publish(run, sentences, curves_figure(run), next_command(run.summary, run.elsewhere))
    return result


def _result(run: Run, settings: Finetune, network: Network, labeled: Labeled, device: Device) -> dict[str, Any]:
    """Choose a classifier and train it; return entries of the run's summary."""
    folds = _folds(labeled, settings)
    fastest = autotune.choose(
        device, settings.backbone, settings.dataset["image_size"], settings.train["batch_size"],
        frozen=settings.mode in (PROBE, KNN),
    )  # fmt: skip
    config = run.resolve(device=settings.device | fastest)
    _begin(run, network, device, labeled)
    if run.resumed and has_checkpoint(run.directory):
        return _continued(run, network, labeled, device)
    candidates = candidates_of(config, settings.search if folds.trainings else [])
    parallel = _parallel(device) and is_first()
    trainings_parallel = parallel and device.torch.type == "cpu"
    if any(c.is_trained for c in candidates) and not run.in_study:  # a study estimates the time of all its runs
        candidates = in_time(run, candidates, network, labeled, device)
    trained = sum(c.is_trained for c in candidates)
    with jobs.stopped_on_error():
        if trainings_parallel and len(folds.trainings) * trained > 1:
            jobs.start()  # meanwhile the features are computed
        frozen: dict[str, Frozen] = {}
        for name in dict.fromkeys(c.name for c in candidates):
            known = frozen.get(PROBE) if name == TUNED else None  # the same network
            frozen[name] = known or frozen_network(
                name, _start(name, network), config, labeled, folds, device, parallel
            )
        began = time.monotonic()
        chosen: Candidate = candidates[0]
        metrics: dict[str, float] = {}
        if labeled.val is None or len(candidates) > 1 or chosen.name in (PROBE, KNN):
            chosen, metrics = choose_candidate(run, candidates, frozen, folds, labeled, trainings_parallel)
    if not (run.in_sweep or run.in_study):
        jobs.stop()
    its = frozen[chosen.name]
    its.pooling = its.encoder.pooling = processes.same(its.pooling)  # which rounding may decide
    init = network.init if chosen.name != SCRATCH else SCRATCH
    used = {**chosen.config, "mode": chosen.mode, "init": init, "search": [], "pooling": its.pooling}
    run.note(chosen=chosen.name, setting=chosen.setting, pooling=its.pooling)
    origin = {k: run.summary[k] for k in ORIGIN if k in run.summary} if chosen.name != SCRATCH else {}
    content = {"stage": run.stage, "config": used, "class_names": labeled.pool.class_names, **origin}
    if chosen.name in (PROBE, KNN):
        return _saved(run, its, chosen.name, labeled, device, content, metrics)
    torch.manual_seed(settings.seed)
    classifier = Classifier(its.encoder, its.classes)
    if chosen.name == TUNED:
        classifier.set_head(*its.initial_head(np.arange(len(labeled.budget)), used["label_smoothing"]))
    del frozen, known, its  # the features are not kept during the training
    result = _trained(run, classifier, labeled, device, content, metrics)
    return {**result, "training_seconds": round(time.monotonic() - began, 2)}


def _parallel(device: Device) -> bool:
    """Return whether a run uses all cores; those of joblib's processes are in use."""
    return device.threads != 1 and "joblib" not in HydraConfig.get().launcher["_target_"]


def _resolved(run: Run, settings: Finetune) -> tuple[Network, Finetune]:
    """Resolve the initial weights, and the settings that depend on them."""
    run.note(resumable=STUDY)  # folds that are finished are not repeated
    settings.budget.check([key_of(o) for o in run.summary["overrides"]])
    if settings.mode == "knn" and settings.balance not in ("auto", "none"):
        raise UserError(f"mode=knn does not balance classes; remove balance={settings.balance}, or set mode=probe")
    search = searched(
        run.stages, settings.search, group_choices(run.summary["overrides"], user_config_dir()), user_config_dir()
    )
    if search and settings.mode in (PROBE, KNN):
        raise UserError(f"search= needs mode=auto or mode=finetune, found mode={settings.mode}; remove one of them")
    overrides = dict(o.split("=", 1) for o in run.summary["overrides"])  # of a resumed run, the first ones, too
    init = settings.init
    if not (run.resumed or run.in_study):  # a study passes all keys of its backbone
        refuse_unused_weights(init, settings.backbone, overrides)
        option = HydraConfig.get().runtime.choices["dataset"]
        run.note(given=given_keys(run.stage, run.config, option, overrides, user_config_dir()))
    overrides = {**run.summary.get("given", {}), **overrides}
    if init == AUTO:
        parallel = _parallel(build(settings.device))
        run.resolve(**choose_initialization(run, settings.budget, overrides, parallel))  # a resumed run keeps it
        init = run.config["init"]
    resumed = run.summary if run.resumed and has_checkpoint(run.directory) else None
    if run.resumed and not resumed and "init" in run.summary and init in (SCRATCH, PRETRAINED):
        network = unchanged(init, settings.backbone, settings.dataset)
    else:
        network = resolve(init, settings.backbone, settings.dataset, overrides, resumed)
    init = settings.init if resumed else network.init
    config = run.resolve(backbone=network.backbone, dataset=network.dataset, init=init, search=search)
    return network, built_settings(Finetune, config)


def _with_data(run: Run, settings: Finetune, labeled: Labeled) -> Finetune:
    """Resolve the settings that depend on the labeled images: range, validation, number of steps, balancing."""
    labels = labeled.budget.labels
    assert labels is not None
    train = settings.train
    if train["steps"] == "auto":
        if epochs := [s for s in settings.search if key_of(s) == "train.epochs"]:
            raise UserError(f"search: {epochs[0]}: train.steps=auto may end before; search train.steps instead")
        train = {**train, "steps": None if train["epochs"] else default_steps(len(labels))}
    balance = balanced_method(settings.balance, labels) if settings.mode != "knn" else "none"
    if "train.evaluations" in run.overrides and not labeled.val:
        log.info("train.evaluations has no effect without validation images: the last state is the result.")
    if balance != "none":
        ratio = class_ratio(labels)
        log.info("balance=%s: the largest class has %.3g times the labels of the smallest.", balance, ratio)
    dataset = {**settings.dataset, "range": labeled.pool.range}
    return built_settings(
        Finetune, run.resolve(dataset=dataset, validation=labeled.validation, train=train, balance=balance)
    )


def _folds(labeled: Labeled, settings: Finetune) -> Folds:
    """Return the folds in which the candidates are compared."""
    folds, grouped = folds_of(labeled, settings.subset_seed), labeled.budget.groups is not None
    if not folds.regressions:
        log.info(
            "Every class has one label%s: nothing can be chosen by cross-validation, so the defaults are used%s, and "
            "there is no estimate of the accuracy.",
            " or one group" if grouped else "", " and search= is not tried" if settings.search else "",
        )  # fmt: skip
    return folds


def _start(name: str, network: Network) -> Network:
    """Return the network with which a candidate starts: from scratch, random weights instead of the initial ones."""
    return Network("scratch", SCRATCH, None, network.backbone, network.dataset) if name == SCRATCH else network


def _begin(run: Run, network: Network, device: Device, labeled: Labeled) -> None:
    """Log and note what will be trained; raise if a resumed run has other data."""
    run.refuse_other_data(labeled.pool.fingerprint(), len(labeled.pool))
    config = run.config
    titles = {"auto": "Best classifier", "finetune": "Finetuning", "probe": "Linear probe", "knn": "kNN classifier"}
    log.info(
        "%s of %s from %s on %s of %s%s; %s, %s, %s",
        titles[config["mode"]], network_name(config["backbone"]), config["init"],
        counted(len(labeled.budget), "label"), describe(config["dataset"]),
        f" + {counted(len(labeled.val), 'validation label')}" if labeled.val else "", device.describe(),
        device.precision, device.memory_format,
    )  # fmt: skip
    run.note(
        **network.origin,
        init=network.name,
        source=config["init"],
        mode=config["mode"],
        backbone=network_name(config["backbone"]),
        dataset=describe(config["dataset"]),
        label_budget=built_settings(Finetune, config).budget.text,
        **labeled.sizes,
        seeds={"training": config["seed"], "subset": config["subset_seed"], "split": config["dataset"]["split_seed"]},
        data_fingerprint=labeled.pool.fingerprint(),
        subset_fingerprint=labeled.budget.fingerprint(),
        subset=labeled.budget.listing_fingerprint(),
        device=device.describe(),
        precision=device.precision,
        memory_format=device.memory_format,
    )


def _saved(
    run: Run, frozen: Frozen, name: str, labeled: Labeled, device: Device, content: Node, metrics: dict[str, float]
) -> dict[str, Any]:
    """Fit a classifier on frozen features of the budget, and save it."""
    run.note(resumable=None)  # a job that is interrupted from here on is repeated
    rows = np.arange(len(labeled.budget))
    classifier: Classifier | KNNClassifier
    if name == KNN:
        classifier = KNNClassifier(frozen.encoder, frozen.classes, len(rows))
        classifier.set_bank(frozen.features[frozen.pooling][rows], frozen.labels[rows])
    else:
        classifier = Classifier(frozen.encoder, frozen.classes)
        classifier.set_head(*frozen.head(rows))
    device.put(classifier)
    state = {f"classifier.{k}": v for k, v in classifier.state_dict().items()}
    content |= {"downstream": Finetuning.downstream, "step": 0, "metrics": metrics, "model": state}
    for name in (LAST, BEST):
        checkpoint.save(run.directory / name, content)
    run.log.scalars(0, metrics)
    if metrics:
        log.info("%s", accuracy_text(metrics, labeled))
    return metrics


def _continued(run: Run, network: Network, labeled: Labeled, device: Device) -> dict[str, Any]:
    """Continue the training of the chosen candidate from the last checkpoint."""
    if run.summary.get("chosen") in (PROBE, KNN):
        log.info("%s is finished: a classifier on frozen features has no steps to continue.", run.directory)
        content = checkpoint.load(run.directory / LAST)
        if not (run.directory / BEST).is_file():  # the run was interrupted between the two
            checkpoint.save(run.directory / BEST, content)
        return dict(content["metrics"])
    _, content = checkpoint.newest_intact(run.directory, resumable=True)
    config, given = content["config"], run.config
    longer = {k: given["train"][k] for k in ("steps", "epochs") if f"train.{k}" in run.overrides}
    if labeled.val is None and content["metrics"] and {k: config["train"][k] for k in longer} != longer:
        log.warning("The accuracy in the folds, the temperature and the threshold stay those of the first length.")
    config["train"] |= {k: given["train"][k] for k in given["train"] if f"train.{k}" in run.overrides}
    config |= {"device": given["device"], "resume": given["resume"]}
    encoder = network.encoder(labeled.pool, config["pooling"])
    origin = {k: content[k] for k in ORIGIN if k in content}
    keep = {"stage": run.stage, "config": config, "class_names": labeled.pool.class_names, **origin}
    classifier = Classifier(encoder, len(labeled.pool.class_names))
    return _trained(run, classifier, labeled, device, keep, {})


def _trained(
    run: Run, classifier: Classifier, labeled: Labeled, device: Device, content: Node, metrics: dict[str, float]
) -> dict[str, Any]:
    """Train a classifier on the budget. Its last state is the result; with a validation split, the best on that.

    Args:
        content: of the checkpoints; its `config` is that of the chosen candidate.
        metrics: of the candidate in cross-validation.
    """
    config, data, val = content["config"], labeled.budget, labeled.val
    assert data.labels is not None
    (run.directory / NOVELTY).unlink(missing_ok=True)  # of a training that is continued
    training: Training = build(config["train"])
    total = training.total_steps(len(data), quiet=False)
    task = finetuning(classifier, config, data.labels, total, pretrained=config["init"] != SCRATCH)
    if not run.in_study:
        views_figure(run, task, sample_images(data.images, config["seed"]), config["seed"])
    device.put(task)
    device.compile(classifier.encoder)
    images, labels = data.images.on(device.torch), data.labels.to(device.torch)
    sampling = config["balance"] == "sampling"
    batches = Batches(images, labels, training.batch_size, total, config["seed"], device, sampling)
    if val:
        training = training.with_affordable_evaluations(total * batches.size, len(val), quiet=False)
    else:
        training = replace(training, evaluations=1)  # nothing is evaluated: only the last state is saved
    optimizer = build_optimizer(config["optimizer"], task, training.learning_rate)
    score = score_name(config["balance"])
    state = State(run, task, optimizer, device, content, score if val else None, metrics)
    result = fit(task, batches, optimizer, training, device, state, lambda: classifier_metrics(classifier, val, device))
    if not is_first():
        return result
    best = checkpoint.load(run.directory / BEST)
    if val:
        unchanged = ": finetuning did not improve on the probe it started from"
        kept = f"step {best['step']} of {total}{unchanged if config['init'] != SCRATCH and best['step'] == 0 else ''}"
        log.info("Best state by validation %s: %s (%s)", SCORES[score], kept, formatted(best["metrics"]))
    if best["metrics"]:
        log.info("%s", accuracy_text(best["metrics"], labeled))
    return {k: v for k, v in result.items() if not k.startswith("val/")} | best["metrics"]
