"""`sslrun data fetch`: download a published data set."""

from dataclasses import dataclass
from typing import Any

from sslrun.base.console import log
from sslrun.base.text import counted
from sslrun.data.dataset import listed
from sslrun.data.options import DatasetNode, describe
from sslrun.run.run import Run


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Settings of `sslrun data fetch`, documented in conf/fetch.yaml."""

    dataset: DatasetNode


def fetch(run: Run, settings: Fetch) -> dict[str, Any]:
    """Download a data set unless it exists, and count its training images.

    Returns:
        Entries of the run's summary.

    Raises:
        UserError: no network, a wrong checksum, an unsafe or damaged archive, or no space left.
    """
    listing = listed(settings.dataset, "train")
    assert listing is not None
    folder = f" in {settings.dataset['root']}" if settings.dataset["root"] else ""
    classes = f", {len(listing.class_names)} classes" if listing.labels is not None else ", no labels"
    images = counted(len(listing.names), "training image")
    log.info("%s: %s%s%s", describe(settings.dataset), images, classes, folder)
    return {"dataset": describe(settings.dataset), "images": len(listing.names)}
