"""`sslrun pretrain`: pretrain a network on images, without labels."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from hydra.core.hydra_config import HydraConfig

from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.base.machine import is_first
from sslrun.base.text import counted
from sslrun.config.build import build
from sslrun.config.compose import given_keys
from sslrun.config.nodes import network_name, short_name
from sslrun.config.types import Count, Node
from sslrun.data.dataset import load_train, load_unlabeled
from sslrun.data.images import Images
from sslrun.data.options import DatasetNode, describe
from sslrun.device import Device
from sslrun.evaluation.validation import encoder_metrics, evaluated_images, knn_images
from sslrun.models.encoder import BackboneNode, Encoder
from sslrun.models.initialization import Network, refuse_unused_weights, resolve_pretraining
from sslrun.models.trained import ORIGIN
from sslrun.report.run_page import neighbors_figure, pretraining_text, publish
from sslrun.report.training import curves_figure, sample_images, task_figures, views_figure
from sslrun.run.encoders import SCRATCH
from sslrun.run.loggers import LoggerName
from sslrun.run.resume import CHECKPOINT
from sslrun.run.run import Run
from sslrun.stages.next import next_command
from sslrun.study.launch import user_config_dir
from sslrun.tasks.task import Task, TaskNode, build_task, views_per_image
from sslrun.training import compilation
from sslrun.training.autotune import choose
from sslrun.training.batches import Batches
from sslrun.training.loop import fit
from sslrun.training.optimizers import build_optimizer
from sslrun.training.settings import SMALLEST_BATCH, Training
from sslrun.training.state import State


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Settings of `sslrun pretrain`, documented in conf/pretrain.yaml."""

    pretext: TaskNode
    init: str
    backbone: BackboneNode
    dataset: DatasetNode
    unlabeled: str | None
    device: Node
    optimizer: Node
    train: Node
    seed: Count
    logger: list[LoggerName]
    resume: str | None


def pretrain(run: Run, settings: Pretrain) -> dict[str, Any]:
    """Train a backbone on a pretext task, on all images of the training split, plus unlabeled images if given.

    Returns:
        Entries of the run's summary.

    Raises:
        UserError: the batch size is too small, or there are fewer than 2 images.
    """
    run.note(resumable=CHECKPOINT)
    training: Training = build(settings.train)
    if training.batch_size < SMALLEST_BATCH:
        raise UserError(f"train.batch_size: must be at least {SMALLEST_BATCH} to pretrain, found {training.batch_size}")
    device = build(settings.device)
    network = _network(run, settings)
    settings = replace(settings, backbone=network.backbone, dataset=network.dataset)
    data, given = load_train(settings.dataset)
    images, names, dataset = data.images, [*data.names], {**settings.dataset, "range": data.range}
    for extra in load_unlabeled(dataset, settings.unlabeled):
        images = images + extra.images
        names += extra.names
        dataset["range"] = dataset["range"] or extra.range
    if len(images) < 2:
        raise UserError(
            f"{describe(settings.dataset)} has {counted(len(images), 'image')} for pretraining; at least 2 are needed"
        )
    torch.manual_seed(settings.seed)
    encoder = network.encoder(data)
    _refuse_no_weights(encoder, settings.backbone)
    size = settings.dataset["image_size"]
    task = build_task(settings.pretext, encoder, size)
    task.set_sizes(len(images), min(training.batch_size, len(images)))
    views_figure(run, task, sample_images(images, settings.seed), settings.seed)
    views = views_per_image(task, size)
    fastest = choose(device, settings.backbone, size, training.batch_size)
    config = run.resolve(device=settings.device | fastest, backbone=settings.backbone, dataset=dataset)
    device.put(task)
    if not run.resumed:
        run.note(**_origin(network, task))
    origin = {k: run.summary[k] for k in ORIGIN if k in run.summary}
    _begin(run, settings, task, images, device)
    run.note(labeled=data.labels is not None, cached_seconds=round(task.prepare(images, device) or 0.0, 2))
    on_device = images.on(device.torch)
    total = training.total_steps(len(on_device), quiet=False)
    batches = Batches(on_device, None, training.batch_size, total, settings.seed, device)
    if len(device.compilations) > 1:
        seen = batches.size * views
        config = run.resolve(device=config["device"] | compilation.choose(device, settings.backbone, size, seen, total))
    device.compile(encoder)
    optimizer = build_optimizer(settings.optimizer, task, training.learning_rate)
    state = State(run, task, optimizer, device, {"stage": run.stage, "config": config, **origin}, None)
    downstream = cast(Encoder, task.get_submodule(task.downstream))  # may be that of a teacher
    knn = knn_images(data, given)
    if knn is not None:
        log.info(
            "val knn accuracy: %s%s, by neighbors among %s. Their labels are only shown: they decide nothing.",
            counted(len(knn[1]), "image"), " of val/" if given else "", counted(len(knn[0]), "training image"),
        )  # fmt: skip
    training = training.with_affordable_evaluations(
        total * batches.size * views, evaluated_images(images, knn), quiet=False
    )
    metrics = partial(encoder_metrics, downstream, on_device, knn, device)
    result = fit(task, batches, optimizer, training, device, state, metrics)
    if not is_first():
        return result
    curves = curves_figure(run)
    task_figures(run, task, sample_images(images, settings.seed), settings.seed, device)
    if not run.in_study:
        neighbors_figure(run, downstream, images, names, device, settings.seed)
        run.note(**result)
        text = pretraining_text(run.summary, size)
        publish(run, text, curves, next_command(run.summary, run.elsewhere))
    return result


def _network(run: Run, settings: Pretrain) -> Network:
    """Resolve and note the initialization; a resumed run has its weights from its own checkpoint."""
    init = SCRATCH if run.resumed else settings.init
    overrides = run.overrides
    if run.in_study:  # which passes all keys of its data set
        overrides = {k: v for k, v in overrides.items() if k not in ("dataset.mean", "dataset.std")}
    elif not run.resumed:
        refuse_unused_weights(init, settings.backbone, overrides)
        if init != SCRATCH:
            option = HydraConfig.get().runtime.choices["dataset"]
            overrides = given_keys(run.stage, run.config, option, overrides, user_config_dir())
    network = resolve_pretraining(init, settings.backbone, settings.dataset, overrides)
    if not run.resumed:
        run.note(init=network.name)
    return network


def _refuse_no_weights(encoder: Encoder, backbone: Node) -> None:
    if not any(True for _ in encoder.parameters()):
        raise UserError(
            f"backbone={network_name(backbone)} has no weights to pretrain; use it with sslrun finetune init=scratch "
            "mode=probe"
        )


def _origin(network: Network, task: Task) -> Node:
    """Return from what the weights at the start and those that the task reads were trained."""
    seen = [o["labels_seen"] for o in (network.origin, task.origin) if "labels_seen" in o]
    return {**network.origin, **task.origin, **({"labels_seen": ", ".join(seen)} if seen else {})}


def _begin(run: Run, settings: Pretrain, task: Task, images: Images, device: Device) -> None:
    """Log and note what will be trained; raise if a resumed run has other data."""
    log.info(
        "Pretraining %s with %s%s on %s of %s at %d px; %s, %s, %s",
        network_name(settings.backbone), short_name(settings.pretext["_target_"]),
        f" ({task.extra_repr()})" if task.extra_repr() else "", counted(len(images), "image"),
        describe(settings.dataset), settings.dataset["image_size"], device.describe(), device.precision,
        device.memory_format,
    )  # fmt: skip
    fingerprint = images.fingerprint().hexdigest()[:16]
    run.refuse_other_data(fingerprint, len(images))
    run.note(
        pretext=short_name(settings.pretext["_target_"]),
        **({"task": task.extra_repr()} if task.extra_repr() else {}),
        backbone=network_name(settings.backbone),
        dataset=describe(settings.dataset),
        images=len(images),
        data_fingerprint=fingerprint,
        seeds={"training": settings.seed, "split": settings.dataset["split_seed"]},
        device=device.describe(),
        precision=device.precision,
        memory_format=device.memory_format,
    )
