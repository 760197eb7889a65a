"""`sslrun evaluate`: evaluate a classifier on the test split, which training and model selection never use."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sslrun.base.console import log, silently
from sslrun.base.errors import UserError
from sslrun.base.output import write_csv, write_json
from sslrun.base.text import counted
from sslrun.base.version import SCHEMA
from sslrun.config.build import locate, parameters
from sslrun.config.nodes import overlaid, same_root, short_name
from sslrun.config.types import Node, PositiveInt
from sslrun.data.dataset import Dataset, listed, load, load_test
from sslrun.data.labeled import labeled_of
from sslrun.data.options import OF_FOLDERS, AnyDatasetNode, describe, labels_of, preprocessing_of
from sslrun.data.tree import normalized
from sslrun.device import Device, inference_device
from sslrun.evaluation import calibration
from sslrun.evaluation.correctness import PREDICTIONS
from sslrun.evaluation.intervals import paired_test, validation_excess
from sslrun.evaluation.metrics import scored
from sslrun.evaluation.probe import map_probes
from sslrun.models.classifier import Classifier
from sslrun.models.features import probabilities
from sslrun.models.trained import Trained, load_classifier
from sslrun.report import evaluation
from sslrun.report.evaluation import log_small_classes, print_classification
from sslrun.report.sheets import mistakes_figure
from sslrun.run.find import read_summary
from sslrun.run.loggers import LoggerName
from sslrun.run.named import find_run
from sslrun.run.run import Run
from sslrun.training.candidates import folds_of

KEPT = (
    "init", "mode", "backbone", "label_budget", "labels_total", "labels_train", "labels_val", "seeds",
    "subset_fingerprint",
)  # fmt: skip
METRICS = ("accuracy", "balanced_accuracy", "precision_macro", "f1_macro", "top5_accuracy", "nll", "ece",
           "ece_calibrated")  # of the summary  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Settings of `sslrun evaluate`, documented in conf/evaluate.yaml."""

    run: str
    against: str | None
    dataset: AnyDatasetNode
    stages: bool
    batch_size: PositiveInt | None
    device: Node
    logger: list[LoggerName]


def evaluate(run: Run, settings: Evaluate) -> dict[str, Any]:
    """Evaluate the best classifier of a run on the test split of its data set, or of another one.

    Returns:
        Entries of the run's summary.

    Raises:
        UserError: no such run, no test labels, other classes, or `against` has other test images.
    """
    if settings.against:
        find_run(settings.against)  # raises before anything is computed
    classifier = _evaluated(settings.run, settings, run.overrides)
    against = _evaluated(settings.against, settings, run.overrides) if settings.against else None
    run.resolve(
        run=str(classifier.directory), dataset=classifier.dataset, against=str(against.directory) if against else None
    )
    data = classifier.data
    scores = scored(
        classifier.probabilities, classifier.labels, data.class_names, classifier.trained.temperature, data.groups
    )
    if against:
        scores["against"] = _compared(classifier, against)
    if not run.in_study:
        _warn_if_changed(classifier)
    if settings.stages and not run.in_study and isinstance(classifier.trained.classifier, Classifier):
        scores["stages"] = _map_probes(classifier, settings.batch_size)
    of_run = read_summary(classifier.directory)
    if excess := _excess(classifier, of_run, scores["accuracy"]):
        scores["validation_excess"] = excess
    _write(run, classifier, scores)
    mistakes_figure(run, data.images, classifier.labels, classifier.calibrated, data.class_names)
    if not run.in_study:
        page = evaluation.publish(run, scores, classifier.directory, describe(classifier.dataset), len(data))
    print_classification(scores, classifier.directory, table=not run.in_sweep)
    if not run.in_study:  # which logs this once
        log_small_classes(scores["classes"])
    if against:
        log.info("%s", evaluation.comparison_text(scores["against"]))
    if not run.in_study:
        if excess:
            log.warning("%s", evaluation.excess_text(excess))
        log.info("Report: %s", page)
    metrics = {f"test/{k}": scores[k] for k in METRICS if k in scores}
    run.log.scalars(0, metrics)
    return {
        **{k: of_run.get(k) for k in KEPT},
        "of_run": str(classifier.directory),
        "of_overrides": of_run["overrides"],
        "source": of_run["config"]["init"],
        "dataset": describe(classifier.dataset),
        "images": len(data),
        "data_fingerprint": data.fingerprint(),
        "device": classifier.device.describe(),
        "precision": classifier.device.precision,
        "images_per_second": round(len(data) / classifier.seconds, 1),
        **metrics,
    }


@dataclass
class Evaluated:
    """A classifier and its predictions on the test images.

    Attributes:
        directory: of its run.
        dataset: node of the config.
        probabilities: `N x classes`, uncalibrated.
        seconds: inference time.
    """

    directory: Path
    trained: Trained
    dataset: Node
    data: Dataset
    device: Device
    probabilities: np.ndarray
    seconds: float

    @property
    def labels(self) -> np.ndarray:
        """The N labels."""
        assert self.data.labels is not None
        return self.data.labels.numpy()

    @property
    def calibrated(self) -> np.ndarray:
        """The probabilities after temperature scaling, as `predict` has them."""
        return calibration.tempered(self.probabilities, self.trained.temperature)


def _is_other_folder(node: Node, trained_on: Node) -> bool:
    """Return whether a data set is a folder with none of the images that a classifier was trained on.

    If the images of the training cannot be read any more, the folder may be theirs, moved.
    """
    if "test_fraction" not in parameters(locate(node["_target_"])) or same_root(node, trained_on):
        return False
    gone = trained_on.get("root") is not None and not os.path.isdir(os.path.expanduser(trained_on["root"]))
    if gone and short_name(trained_on["_target_"]) != "folder":
        return True  # a published data set, which is not downloaded for this
    with silently():
        try:
            used = None if gone else load(trained_on, "train")
        except UserError:  # its files have changed
            used = None
        every = load({**node, "test_fraction": 1.0, "groups": None}, "test")
    if used is None:
        place, other = trained_on["root"], node["root"]
        log.info("The images of the training are not at %s any more; only the test split of %s is used.", place, other)
        return False
    same = _digests(used) & _digests(every) if every else set()
    if same:
        log.info(
            "%s contains %s of the training: only its test split is used.", node["root"], counted(len(same), "image")
        )
    return not same


def _refuse_training_images(test: Dataset, node: Node, trained_on: Node) -> None:
    """Refuse keys that make images of the training test images: another fraction, or other labels."""
    changed = [k for k in OF_FOLDERS if node.get(k) != trained_on.get(k) and k != "root"]
    if not changed or not same_root(node, trained_on):
        return
    tested, used = listed(node, "test"), listed(trained_on, "train")
    same = set(tested.items if tested else ()) & set(used.items if used else ())  # names depend on the labels
    if same:
        keys = ", ".join(f"dataset.{k}={node.get(k)}" for k in changed)
        raise UserError(
            f"{keys}: {len(same)} of the {counted(len(test), 'test image')} are images of the training: evaluate with "
            f"{', '.join(f'dataset.{k}={trained_on.get(k)}' for k in changed)}, as in the training"
        )


def _warn_if_changed(classifier: Evaluated) -> None:
    """Log a warning if the training images in the folder are not those of the training any more."""
    trained_on, node = classifier.trained.config["dataset"], classifier.dataset
    if "test_fraction" not in parameters(locate(node["_target_"])) or not same_root(node, trained_on):
        return
    with silently():
        try:
            now = labeled_of(classifier.trained.config).pool.fingerprint()
        except UserError:
            return  # reported above, if it matters
    if now != read_summary(classifier.directory).get("data_fingerprint", now):
        log.warning(
            "The training images of %s, their labels or groups have changed since the training: test images may be "
            "among those it was trained on.", describe(node),
        )  # fmt: skip


def _refuse_no_folder(root: str, node: Node, directory: Path) -> None:
    """Raise if another folder is to be evaluated with a data set that has none, such as the digits."""
    if short_name(node["_target_"]) != "folder" and node.get("root") is None:
        raise UserError(
            f"dataset.root={root}: {directory} is a classifier of {describe(node)}, which is no folder; add "
            "dataset=folder"
        )


def _digests(data: Dataset) -> set[bytes]:
    return {d.tobytes() for d in data.images.digests[data.images.index.numpy()]}


def _evaluated(run: str, settings: Evaluate, overrides: dict[str, str]) -> Evaluated:
    directory = find_run(run)
    trained = load_classifier(directory)
    device = inference_device(settings.device, trained.config["device"])
    dataset, trained_on = settings.dataset, trained.config["dataset"]
    base = dataset if dataset.get("_target_") else trained_on
    if node_root := dataset.get("root") if "dataset.root" in overrides else None:
        _refuse_no_folder(str(node_root), trained_on, directory)
    node = preprocessing_of(overlaid("dataset", base, dataset, overrides), trained_on, overrides, trained.path)
    keys = parameters(locate(node["_target_"]))
    node = labels_of(node, trained_on, overrides)
    if "dataset.groups" not in overrides and "groups" in keys:  # those of the training, for the same test split
        node = {**node, "groups": trained_on.get("groups")}
    if "dataset.test_fraction" not in overrides and "test_fraction" in keys:
        node = {**node, "test_fraction": trained_on.get("test_fraction", node.get("test_fraction", 0.2))}
        if _is_other_folder(node, trained_on):
            node = {**node, "test_fraction": 1.0, "groups": settings.dataset.get("groups")}
            log.info("%s has no image of the training: if it has no test/, all its images are used.", node["root"])
    data = load_test(node)
    if [*map(normalized, data.class_names)] != [*map(normalized, trained.class_names)]:
        raise UserError(
            f"{describe(node)} has the classes {', '.join(data.class_names[:10])}, but {trained.path} was trained "
            f"for {', '.join(trained.class_names[:10])}"
        )
    _refuse_training_images(data, node, trained_on)
    log.info("Evaluating %s on %s of %s", directory, counted(len(data), "test image"), describe(node))
    assert trained.classifier is not None
    device.put(trained.classifier)
    began = time.perf_counter()
    p = probabilities(trained.classifier, data.images, device, settings.batch_size).numpy()
    return Evaluated(directory, trained, node, data, device, p, time.perf_counter() - began)


def _excess(classifier: Evaluated, of_run: Node, accuracy: float) -> dict[str, Any] | None:
    """Return both accuracies if that on validation exceeds that on test images by more than both intervals allow.

    Returns:
        `validation` and `test`, and the likely `reason`: `no_groups` if `dataset.groups` could be set, `few_groups` if
        it is, or `other_images`.
    """
    images, trained_on, node = (
        int(of_run.get("val/images", 0)),
        of_run["config"]["dataset"],
        classifier.dataset,
    )
    if not images or "val/accuracy" not in of_run:
        return None
    excess = validation_excess(of_run["val/accuracy"], images, accuracy, len(classifier.data))
    if excess is None:
        return None
    same = node["_target_"] == trained_on["_target_"] and same_root(node, trained_on)
    if not same or "groups" not in parameters(locate(node["_target_"])):
        return excess | {"reason": "other_images"}
    return excess | {"reason": "few_groups" if classifier.data.groups is not None else "no_groups"}


def _compared(classifier: Evaluated, against: Evaluated) -> dict[str, Any]:
    """Compare two classifiers on the same images with a paired test, by groups if the test images have them.

    Raises:
        UserError: they were evaluated on different images.
    """
    same = classifier.data.names == against.data.names and np.array_equal(classifier.labels, against.labels)
    if not same or classifier.data.class_names != against.data.class_names:
        raise UserError(
            f"{classifier.directory} and {against.directory} have different test images or classes; they can only be "
            "compared on the same ones"
        )
    correct, rival = (e.probabilities.argmax(1) == e.labels for e in (classifier, against))
    test = paired_test(correct, rival, classifier.data.groups)
    return {"run": str(against.directory), "accuracy": float(rival.mean()), **test}


def _map_probes(classifier: Evaluated, batch_size: int | None) -> list[dict[str, Any]]:
    """Train linear probes on the feature maps of the backbone; empty if the labeled images of the run are gone."""
    config = classifier.trained.config
    node, evaluated_on = config["dataset"], classifier.dataset
    moved = evaluated_on["_target_"] == node["_target_"] and node.get("root") and not Path(node["root"]).exists()
    node = node | {"root": evaluated_on["root"]} if moved else node
    try:
        labeled = labeled_of({**config, "dataset": node})
        if labeled.budget.fingerprint() != read_summary(classifier.directory)["subset_fingerprint"]:
            raise UserError("the labeled images are not those of the run")
    except UserError as error:
        log.info("Skipped the probes of the stages: %s", error)
        return []
    folds = folds_of(labeled, config["subset_seed"]).regressions
    return map_probes(classifier.trained.encoder, labeled, folds, classifier.data, classifier.device, batch_size)


def _write(run: Run, classifier: Evaluated, scores: dict[str, Any]) -> None:
    write_json(run.directory / "report.json", {"schema": SCHEMA, **scores})
    write_csv(run.directory / "per_class.csv", scores["classes"])
    arrays: dict[str, Any] = {
        "probabilities": classifier.calibrated.astype(np.float16),
        "labels": classifier.labels,
        "names": np.array(classifier.data.names),
        "class_names": np.array(classifier.data.class_names),
    }
    if classifier.data.groups is not None:
        arrays["groups"] = classifier.data.groups.astype(str)
    np.savez_compressed(run.directory / PREDICTIONS, **arrays)
