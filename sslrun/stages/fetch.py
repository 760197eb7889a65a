"""`sslrun data fetch`: have a data set where it belongs."""

from dataclasses import dataclass
from typing import Any

from sslrun.base.console import log
from sslrun.data.dataset import listed
from sslrun.data.options import DatasetNode, describe
from sslrun.runs.run import Run


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Settings of a fetch; what they mean stands in conf/fetch.yaml."""

    dataset: DatasetNode


def fetch(run: Run, settings: Fetch) -> dict[str, Any]:
    """Fetch a data set unless it is there, and count its training pictures.

    Returns:
        What goes into the summary.

    Raises:
        UserError: no network, a wrong checksum, an unsafe or damaged archive, no space.
    """
    listing = listed(settings.dataset, "train")
    assert listing is not None
    place = f" in {settings.dataset['root']}" if settings.dataset["root"] else ""
    classes = f", {len(listing.class_names)} classes" if listing.labels is not None else ", no labels"
    log.info("%s: %d training pictures%s%s", describe(settings.dataset), len(listing.names), classes, place)
    return {"dataset": describe(settings.dataset), "images": len(listing.names)}
