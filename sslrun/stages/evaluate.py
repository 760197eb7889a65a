"""`sslrun evaluate`: read the test split, once, and report on a finetuned classifier."""

import csv
import json
import time
from typing import Any

import numpy as np

from sslrun import report
from sslrun.classifier import probabilities
from sslrun.config import DatasetNode, Node, PositiveInt, UserError
from sslrun.console import log
from sslrun.data.dataset import describe, load_test
from sslrun.metrics import classification
from sslrun.run import Run, read_summary
from sslrun.start import find_run, inference_device, load_classifier, overlaid, preprocessing_of


def evaluate(own: Run, *, run: str, dataset: DatasetNode, batch_size: PositiveInt, device: Node) -> dict[str, Any]:
    """Evaluate a run's best classifier on the test split of the data that it was trained on, or of other data.

    Returns:
        What goes into the summary.

    Raises:
        UserError: no such run, no test labels, or other classes.
    """
    directory = find_run(run)
    trained = load_classifier(directory)
    hardware = inference_device(device, trained)
    has = trained.config["dataset"]
    base = dataset if dataset.get("_target_") else has
    dataset = preprocessing_of(overlaid("dataset", base, dataset, own.asked), has, own.asked, trained.path)
    own.settle(run=str(directory), dataset=dataset)
    data = load_test(dataset)
    if data.class_names != trained.class_names:
        raise UserError(
            f"{describe(dataset)} has the classes {', '.join(data.class_names[:10])}, but {trained.path} was trained "
            f"for {', '.join(trained.class_names[:10])}"
        )
    assert data.labels is not None
    log.info("Evaluating %s on %d test pictures of %s", directory, len(data), describe(dataset))
    hardware.put(trained.model)
    began = time.perf_counter()
    p = probabilities(trained.model, data.images, hardware, batch_size)
    seconds = time.perf_counter() - began
    found = classification(data.labels.numpy(), p.argmax(1).numpy(), data.class_names)
    (own.directory / "report.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    with (own.directory / "classes.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(found["classes"][0]))
        writer.writeheader()
        writer.writerows(found["classes"])
    np.savez_compressed(
        own.directory / "predictions.npz",
        probabilities=p.numpy().astype(np.float16),
        labels=data.labels.numpy(),
        names=np.array(data.names),
        class_names=np.array(data.class_names),
    )
    report.mistakes_figure(own, data.images, data.labels.numpy(), p.numpy(), data.class_names)
    if not own.is_part:
        report.confusion_figure(own, found["confusion_matrix"], data.class_names)
    report.print_classification(found, directory, table=not own.in_sweep)
    of_run = read_summary(directory)
    kept = (
        "init",
        "mode",
        "backbone",
        "label_fraction",
        "labels_per_class",
        "labels",
        "seeds",
        "subset_fingerprint",
    )
    metrics = {f"test/{k}": found[k] for k in ("accuracy", "precision_macro", "recall_macro", "f1_macro")}
    own.metrics(0, metrics)
    return {
        **{k: of_run.get(k) for k in kept},
        "of_run": str(directory),
        "of_overrides": of_run["overrides"],
        "source": of_run["config"]["init"],
        "dataset": describe(dataset),
        "images": len(data),
        "data_fingerprint": data.fingerprint(),
        "device": hardware.describe(),
        "precision": hardware.precision,
        "images_per_second": round(len(data) / seconds, 1),
        **metrics,
    }
