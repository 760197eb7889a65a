"""`sslrun pretrain`: learn features from pictures without their labels."""

from typing import Any

import torch

from sslrun import modes, start
from sslrun.backbones import build_encoder, features
from sslrun.config import Count, DatasetNode, Node, UserError, build, function
from sslrun.console import log
from sslrun.data.dataset import describe, load_train, load_unlabeled
from sslrun.metrics import embedding_health, has_collapsed, knn_probabilities
from sslrun.report import figures
from sslrun.run import Run
from sslrun.train import SMALLEST_BATCH

HEALTH_IMAGES, KNN_BANK, KNN_QUERIES = 1024, 5000, 2000


def pretrain(
    run: Run,
    *,
    pretext: Node,
    backbone: Node,
    dataset: DatasetNode,
    unlabeled: str | None,
    device: Node,
    optimizer: Node,
    train: Node,
    seed: Count,
    resume: str | None,
) -> dict[str, Any]:
    """Train a backbone on a pretext task, on the training split less validation, and on unlabelled pictures if any.

    Returns:
        What goes into the summary.
    """
    if train["batch_size"] < SMALLEST_BATCH:
        raise UserError(f"train.batch_size: must be at least {SMALLEST_BATCH} to pretrain, found {train['batch_size']}")
    hardware = build(device)
    data, val = load_train(dataset)
    images = data.images
    for extra in load_unlabeled(dataset, unlabeled):
        images = images + extra.images
    if len(images) < 2:
        raise UserError(f"{describe(dataset)} has {len(images)} picture for pretraining; at least 2 are needed")
    torch.manual_seed(seed)
    mean, std = start.normalization(dataset, data)
    encoder = build_encoder(backbone, dataset["image_size"], mean, std)
    model = build(pretext, encoder, dataset["image_size"])
    figures.views_figure(run, model, figures.some_of(images, seed), seed)
    fastest = modes.choose(hardware, backbone, dataset["image_size"], train["batch_size"])
    config = run.settle(device=device | fastest)
    model = hardware.put(model)
    hardware.compile(encoder)
    log.info(
        "Pretraining %s with %s on %d pictures of %s at %d px; %s, %s, %s",
        start.short_name(backbone["_target_"]), start.short_name(pretext["_target_"]), len(images), describe(dataset),
        dataset["image_size"], hardware.describe(), hardware.precision,
        hardware.memory_format,
    )  # fmt: skip
    fingerprint = images.fingerprint().hexdigest()[:16]
    run.refuse_other_data(fingerprint, len(images))
    run.note(
        pretext=start.short_name(pretext["_target_"]),
        backbone=start.short_name(backbone["_target_"]),
        dataset=describe(dataset),
        images=len(images),
        data_fingerprint=fingerprint,
        seeds={"training": seed, "split": dataset["split_seed"]},
        device=hardware.describe(),
        precision=hardware.precision,
        memory_format=hardware.memory_format,
    )

    held = hardware.hold(images)

    def evaluate() -> dict[str, float]:
        health = embedding_health(features(encoder, held[:: max(1, len(held) // HEALTH_IMAGES)], hardware))
        if has_collapsed(health):
            log.warning(
                "The embedding has collapsed: spread %.3f (healthy is about 1), effective rank %.1f. Try a lower "
                "train.learning_rate, a larger train.batch_size, or another pretext.",
                health["feature_spread"],
                health["effective_rank"],
            )
        metrics = {f"val/{k}": v for k, v in health.items()}
        if val is not None and data.labels is not None and len(data.class_names) > 1:
            rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:KNN_BANK]
            bank = features(encoder, data.images[rows], hardware)
            queries = features(encoder, val.images[:KNN_QUERIES], hardware)
            found = knn_probabilities(queries, bank, data.labels[rows], len(data.class_names)).argmax(1)
            metrics["val/knn_accuracy"] = float((found == val.labels[:KNN_QUERIES]).float().mean())  # type: ignore[index]
        return metrics

    keep = {"stage": "pretrain", "config": config}
    result = function(train)(model, held, None, run, hardware, optimizer, evaluate, "val/knn_accuracy", seed, keep)
    figures.curves_figure(run)
    return result
