"""`sslrun data fetch`: have a data set where it belongs."""

from typing import Any

from sslrun.config import DatasetNode
from sslrun.console import log
from sslrun.data.dataset import describe, find
from sslrun.run import Run


def fetch(run: Run, *, dataset: DatasetNode) -> dict[str, Any]:
    """Fetch a data set unless it is there, and count its training pictures.

    Returns:
        What goes into the summary.

    Raises:
        UserError: no network, a wrong checksum, an unsafe or damaged archive, no space.
    """
    pictures = find(dataset, "train")
    assert pictures is not None
    place = f" in {dataset['root']}" if dataset["root"] else ""
    classes = f", {len(pictures.class_names)} classes" if pictures.labels is not None else ", no labels"
    log.info("%s: %d training pictures%s%s", describe(dataset), len(pictures.names), classes, place)
    return {"dataset": describe(dataset), "images": len(pictures.names)}
