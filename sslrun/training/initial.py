"""`init=auto` without a pretraining: published weights or training from scratch, by out-of-fold accuracy."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sslrun.base.console import log, silently
from sslrun.base.errors import UserError
from sslrun.base.processes import by_first
from sslrun.base.text import percent
from sslrun.config.build import build
from sslrun.config.commands import FOR_ENCODER
from sslrun.config.nodes import network_name
from sslrun.config.types import Node
from sslrun.data.balance import balanced_method
from sslrun.data.labeled import Labeled, load_labeled
from sslrun.data.labels import LabelBudget
from sslrun.data.options import describe
from sslrun.evaluation.selection import Predictions, choose, score
from sslrun.evaluation.validation import SCORES, score_name
from sslrun.models.initialization import Network, resolve
from sslrun.models.published import INSTALL, Published, load, on_this_machine, weights_of
from sslrun.run.encoders import LATEST, PRETRAINED, SCRATCH, newest_encoder
from sslrun.run.find import find
from sslrun.run.run import Run
from sslrun.training import autotune, jobs
from sslrun.training.candidates import KNN, PROBE, Candidate, compared, folds_of, frozen_network
from sslrun.training.settings import default_steps

TITLES = {SCRATCH: "scratch", PRETRAINED: "published weights"}


def published_here(backbone: Node) -> Published | None:
    """Return the published weights of a backbone that are on this machine; without a backbone, the first ones."""
    if not backbone.get("_target_"):
        return next(on_this_machine(), None)
    weights = weights_of(backbone)
    return weights if weights and weights.path else None


@by_first
def choose_initialization(
    run: Run, budget: LabelBudget, overrides: Mapping[str, str], parallel: bool
) -> dict[str, Any]:
    """Return the `init` that `auto` stands for: `latest` if there is a pretraining, else the better of two.

    Published weights are those on this machine, with their own network and image size unless these are given; their
    score is that of a linear probe. If they are damaged or do not fit, scratch is taken. Scratch is trained, with
    the backbone and image size that it has without them. With `mode=probe` or `mode=knn` both are such classifiers
    on frozen features. They are compared in the folds of the label budget, and the more accurate is taken; the
    scores are noted as `init_compared`. The trainings of the folds stay in the run's directory if scratch is
    chosen, since the run then needs them.

    Args:
        run: its config has the settings of the finetuning.
        budget: the labels.
        overrides: of the command line, key -> value.
        parallel: use all cores.

    Returns:
        Nodes of the run's config: `init`, and after a comparison the `device`, so that the run continues with the same
        precision.

    Raises:
        UserError: there are too few labels.
    """
    config = run.config
    backbone, dataset = config["backbone"], config["dataset"]
    if newest_encoder(find(FOR_ENCODER, study_runs=True), backbone, dataset):
        return {"init": LATEST}
    if backbone.get("weights"):  # a file was given: that is a choice
        return {"init": PRETRAINED}
    with silently():  # what is chosen is logged when it is used
        scratch = resolve(SCRATCH, backbone, dataset, overrides)
        here = published_here(backbone)
    if not here:
        _log_none(backbone, scratch)
        return {"init": SCRATCH}
    try:  # before scratch is trained
        with silently():
            weights = resolve(PRETRAINED, backbone, dataset, overrides)
            load(here, build(weights.backbone, weights.dataset["image_size"]))
    except UserError as error:
        log.warning("Published weights of %s cannot be used: %s. Training from scratch.", here.name, error)
        return {"init": SCRATCH}
    both = [_Initialization(run, network, budget, overrides) for network in (scratch, weights)]
    if not both[0].folds.regressions:
        log.info("Every class has one label, so published weights and scratch cannot be compared.")
        log.info("Starting from published weights of %s; init=scratch takes the other.", here.name)
        return {"init": PRETRAINED}
    log.info(
        "No pretraining of %s: init=auto compares %s with %s.", describe(scratch.dataset), both[1].title, both[0].title
    )
    with jobs.stopped_on_error():
        probabilities = [each.probabilities(run.directory, parallel) for each in both]
    chosen = _chosen(run, both, probabilities)
    if chosen == PRETRAINED or both[0].labeled.val is not None:
        shutil.rmtree(run.directory / "folds", ignore_errors=True)
    return {"init": chosen, "device": next(each.config["device"] for each in both if each.network.name == chosen)}


class _Initialization:
    """One of the initializations that are compared, and the classifier by which it is.

    Args: see `choose_initialization`.
    """

    def __init__(self, run: Run, network: Network, budget: LabelBudget, overrides: Mapping[str, str]) -> None:
        mode = run.config["mode"]
        self.network = network
        self.classifier = mode if mode in (PROBE, KNN) else SCRATCH if network.name == SCRATCH else PROBE
        self.labeled = load_labeled(network.dataset, budget, run.config["validation"], overrides)
        self.folds = folds_of(self.labeled, run.config["subset_seed"])
        self.config = run.with_nodes(**_nodes(run.config, network, self.labeled, self.classifier != SCRATCH))
        self.candidate = Candidate(network.name, "", self.config)

    @property
    def title(self) -> str:
        """Return a description: `scratch (smallcnn at 32 px)`."""
        how = {SCRATCH: "", PROBE: "linear probe of ", KNN: "kNN on "}[self.classifier]
        network = f"{network_name(self.network.backbone)} at {self.network.dataset['image_size']} px"
        return f"{TITLES[self.network.name]} ({how}{network})"

    def probabilities(self, directory: Path, parallel: bool) -> np.ndarray:
        """Return the predictions in the folds, `variants x N x classes`.

        Args:
            directory: of the run, where trainings of folds are kept.
        """
        device = build(self.config["device"])
        frozen = frozen_network(self.classifier, self.network, self.config, self.labeled, self.folds, device, parallel)
        if self.classifier != SCRATCH:
            return frozen.probabilities
        at_once = parallel and device.torch.type == "cpu"
        result = compared([self.candidate], {self.candidate.name: frozen}, self.folds, at_once, directory)
        return result.predictions.probabilities


def _nodes(config: Node, network: Network, labeled: Labeled, frozen: bool) -> dict[str, Any]:
    """Return the settings of a finetuning that depend on the network and the images, as the run will have them."""
    labels, train = labeled.budget.labels, config["train"]
    assert labels is not None
    if train["steps"] == "auto":
        train = {**train, "steps": None if train["epochs"] else default_steps(len(labels))}
    with silently():  # likewise
        device = build(config["device"])
        fastest = autotune.choose(device, network.backbone, network.dataset["image_size"], train["batch_size"], frozen)
    return {
        "init": network.init,
        "backbone": network.backbone,
        "dataset": {**network.dataset, "range": labeled.pool.range},
        "validation": labeled.validation,
        "train": train,
        "balance": balanced_method(config["balance"], labels) if config["mode"] != KNN else "none",
        "device": config["device"] | fastest,
    }


def _chosen(run: Run, both: list[_Initialization], probabilities: list[np.ndarray]) -> str:
    """Return the better of two initializations; log and note their scores."""
    data, balance = both[0].labeled.every, both[0].config["balance"]
    assert data.labels is not None
    groups = None if data.groups is None else np.unique(data.groups, return_inverse=True)[1]
    names = [each.candidate.name for each, p in zip(both, probabilities, strict=True) for _ in p]
    every = Predictions(names, np.concatenate(probabilities), data.labels.numpy(), balance != "none", groups)
    scores = {}
    for each, p in zip(both, probabilities, strict=True):
        own = replace(every, names=[each.candidate.name] * len(p), probabilities=p)
        scores[each.candidate.name] = score(own, choose(own), every.common)
    run.note(init_compared={name: round(value, 6) for name, value in scores.items()})
    chosen, other = (PRETRAINED, SCRATCH) if scores[PRETRAINED] > scores[SCRATCH] else (SCRATCH, PRETRAINED)
    metric = SCORES[score_name(balance)]
    log.info(
        "%s: %s %s, %s %s. Starting from %s; init=%s takes the other.",
        f"{metric.capitalize()} on validation" if both[0].labeled.val else f"Out-of-fold {metric}",
        TITLES[chosen], percent(scores[chosen]), TITLES[other], percent(scores[other]), TITLES[chosen], other,
    )  # fmt: skip
    return chosen


def _log_none(backbone: Node, scratch: Network) -> None:
    """Log that there are no published weights to start from, and how to get some."""
    name, known = network_name(scratch.backbone), weights_of(backbone) if backbone.get("_target_") else None
    if not backbone.get("_target_"):
        what, how = "no published weights on this machine", f"{INSTALL}; see sslrun weights"
    elif known is None:
        what, how = f"there are no published weights of {name}", "choose another backbone; see sslrun weights"
    else:
        what, how = f"the published weights of {name} are not on this machine", "init=pretrained downloads them"
    log.info("No pretraining of %s, and %s: training %s from scratch.", describe(scratch.dataset), what, name)
    log.info("To start from published weights: %s.", how)
