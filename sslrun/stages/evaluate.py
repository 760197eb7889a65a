"""`sslrun evaluate`: read the test split, once, and report on a finetuned classifier."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.base.output import write_csv, write_json
from sslrun.config.nodes import overlaid
from sslrun.config.types import Node, PositiveInt
from sslrun.data.dataset import Dataset, load_test, load_train
from sslrun.data.labels import LabelBudget
from sslrun.data.options import AnyDatasetNode, describe, preprocessing_of
from sslrun.device import Device, inference_device
from sslrun.evaluation.features import probabilities
from sslrun.evaluation.intervals import paired_test
from sslrun.evaluation.metrics import scored
from sslrun.evaluation.probe import map_probes
from sslrun.models.classifier import Classifier
from sslrun.models.trained import Trained, load_classifier
from sslrun.report import evaluation
from sslrun.report.evaluation import confusion_figure, print_classification
from sslrun.report.sheets import mistakes_figure
from sslrun.runs.find import find_run, read_summary
from sslrun.runs.run import Run

KEPT = ("init", "mode", "backbone", "label_fraction", "labels_per_class", "labels", "seeds", "subset_fingerprint")


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Settings of an evaluation; what they mean stands in conf/evaluate.yaml."""

    run: str
    against: str | None
    dataset: AnyDatasetNode
    stages: bool
    batch_size: PositiveInt
    device: Node


def evaluate(run: Run, settings: Evaluate) -> dict[str, Any]:
    """Evaluate a run's best classifier on the test split of the data that it was trained on, or of other data.

    Returns:
        What goes into the summary.

    Raises:
        UserError: no such run, no test labels, or other classes or pictures.
    """
    if settings.against:
        find_run(settings.against)  # before anything is computed
    classifier = _tested(settings.run, settings, run.overrides)
    rival = _tested(settings.against, settings, run.overrides) if settings.against else None
    run.resolve(
        run=str(classifier.directory), dataset=classifier.dataset, against=str(rival.directory) if rival else None
    )
    scores = scored(
        classifier.probabilities, classifier.labels, classifier.data.class_names, classifier.trained.temperature
    )
    if rival:
        scores["against"] = _compared(classifier, rival)
    if settings.stages and not run.in_study and isinstance(classifier.trained.classifier, Classifier):
        scores["stages"] = _map_probes(classifier, settings.batch_size)
    _write(run, classifier, scores)
    mistakes_figure(
        run, classifier.data.images, classifier.labels, classifier.probabilities, classifier.data.class_names
    )
    if not run.in_study:
        confusion_figure(run, scores["confusion_matrix"], classifier.data.class_names)
        page = evaluation.publish(run, scores, classifier.directory, describe(classifier.dataset), len(classifier.data))
    print_classification(scores, classifier.directory, table=not run.in_sweep)
    if rival:
        log.info("%s", evaluation.comparison_text(scores["against"]))
    if not run.in_study:
        log.info("The report: %s", page)
    of_run = read_summary(classifier.directory)
    names = ("accuracy", "precision_macro", "recall_macro", "f1_macro", "top5_accuracy", "nll", "ece", "ece_calibrated")
    metrics = {f"test/{k}": scores[k] for k in names if k in scores}
    run.log.scalars(0, metrics)
    return {
        **{k: of_run.get(k) for k in KEPT},
        "of_run": str(classifier.directory),
        "of_overrides": of_run["overrides"],
        "source": of_run["config"]["init"],
        "dataset": describe(classifier.dataset),
        "images": len(classifier.data),
        "data_fingerprint": classifier.data.fingerprint(),
        "device": classifier.device.describe(),
        "precision": classifier.device.precision,
        "images_per_second": round(len(classifier.data) / classifier.seconds, 1),
        **metrics,
    }


@dataclass
class Tested:
    """A classifier and what it said of the test pictures, `N x classes`."""

    directory: Path
    trained: Trained
    dataset: Node
    data: Dataset
    device: Device
    probabilities: np.ndarray
    seconds: float

    @property
    def labels(self) -> np.ndarray:
        """Return the N labels."""
        assert self.data.labels is not None
        return self.data.labels.numpy()


def _tested(run: str, settings: Evaluate, overrides: dict[str, str]) -> Tested:
    directory = find_run(run)
    trained = load_classifier(directory)
    hardware = inference_device(settings.device, trained.config["device"])
    dataset, has = settings.dataset, trained.config["dataset"]
    base = dataset if dataset.get("_target_") else has
    node = preprocessing_of(overlaid("dataset", base, dataset, overrides), has, overrides, trained.path)
    data = load_test(node)
    if data.class_names != trained.class_names:
        raise UserError(
            f"{describe(node)} has the classes {', '.join(data.class_names[:10])}, but {trained.path} was trained "
            f"for {', '.join(trained.class_names[:10])}"
        )
    log.info("Evaluating %s on %d test pictures of %s", directory, len(data), describe(node))
    assert trained.classifier is not None
    hardware.put(trained.classifier)
    began = time.perf_counter()
    p = probabilities(trained.classifier, data.images, hardware, settings.batch_size).numpy()
    return Tested(directory, trained, node, data, hardware, p, time.perf_counter() - began)


def _compared(classifier: Tested, rival: Tested) -> dict[str, Any]:
    """Compare two classifiers picture by picture.

    Raises:
        UserError: they were not tested on the same pictures.
    """
    same = classifier.data.names == rival.data.names and np.array_equal(classifier.labels, rival.labels)
    if not same or classifier.data.class_names != rival.data.class_names:
        raise UserError(
            f"{classifier.directory} and {rival.directory} have other test pictures or classes: only what was tested "
            "on the same ones can be compared"
        )
    right = [t.probabilities.argmax(1) == t.labels for t in (classifier, rival)]
    return {"run": str(rival.directory), "accuracy": float(right[1].mean()), **paired_test(*right)}


def _map_probes(classifier: Tested, batch_size: int) -> list[dict[str, Any]]:
    """Probe the maps of the backbone with the labeled pictures of the run; nothing where these are gone."""
    config = classifier.trained.config
    node, tested = config["dataset"], classifier.dataset
    moved = tested["_target_"] == node["_target_"] and node.get("root") and not Path(node["root"]).exists()
    node = node | {"root": tested["root"]} if moved else node
    try:
        data, val = load_train(node)
        budget = LabelBudget(config["label_fraction"], config["labels_per_class"], config["subset_seed"])
        chosen = data.labeled(budget, describe(node))
        if config["fold"] is None and chosen.fingerprint() != read_summary(classifier.directory)["subset_fingerprint"]:
            raise UserError("the labeled pictures are not those of the run")
    except UserError as error:
        log.info("No probes of the stages: %s", error)
        return []
    return map_probes(
        classifier.trained.encoder, chosen, val, classifier.data, classifier.device, config["seed"], batch_size
    )


def _write(own: Run, classifier: Tested, scores: dict[str, Any]) -> None:
    write_json(own.directory / "report.json", scores)
    write_csv(own.directory / "classes.csv", scores["classes"])
    np.savez_compressed(
        own.directory / "predictions.npz",
        probabilities=classifier.probabilities.astype(np.float16),
        labels=classifier.labels,
        names=np.array(classifier.data.names),
        class_names=np.array(classifier.data.class_names),
    )
