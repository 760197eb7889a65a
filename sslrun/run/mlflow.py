"""Runs at MLflow: settings, metrics, figures, and the runs of a sweep or a study under one parent.

MLflow's own variables say where: `MLFLOW_TRACKING_URI` (by default a SQLite file in outputs/) and
`MLFLOW_EXPERIMENT_NAME`.
"""

import logging
import os
import re
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sslrun.base.locks import alone
from sslrun.config.nodes import flattened
from sslrun.run.find import OUTPUTS
from sslrun.run.log import PARENT, name_of, scores_of

RUN = "mlflow_run"  # entry of a run's summary
DIRECTORY, STAGE = "directory", "stage"  # tags
FIGURES = "figures"
FILES = ("config.yaml", "summary.json", "report.html", "report.json", "results.csv", "sweep.csv")
ENDED = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
LONGEST, AT_ONCE = 6000, 100  # characters of a parameter, and parameters of a call
NOT_IN_NAMES = re.compile(r"[^\w\-. :/]", re.ASCII)  # of parameters


class MLflow:
    """One run at MLflow; that of a resumed run is continued.

    Args:
        directory: of the run.
        summary: of the run, which grows.

    Attributes:
        entries: for the summary: the run's ID.
        for_children: environment variables of the runs that this one starts.
        place: where it is, in words.

    Raises:
        Exception: the server cannot be reached, or the package is not installed.
    """

    def __init__(self, directory: Path, summary: Mapping[str, Any]) -> None:
        self.directory, self._summary = directory, summary
        self._client, experiment = _opened()
        before = _found(self._client, summary[RUN]) if RUN in summary else None
        self.id = summary[RUN] if before else self._created(experiment)
        self.entries, self.for_children = {RUN: self.id}, {PARENT: self.id}
        own = f"mlflow ui --backend-store-uri {shlex.quote(self._client.tracking_uri)}"
        self.place = f"run {self.id}" if "MLFLOW_TRACKING_URI" in os.environ else f"see it with: {own}"
        self._client.update_run(self.id, status="RUNNING")
        self._has_params = bool(before and before.data.params)

    def _created(self, experiment: str) -> str:
        summary = self._summary
        tags = {
            "mlflow.source.name": summary["command"],
            "mlflow.source.git.commit": summary.get("git_commit"),
            "mlflow.parentRunId": os.environ.get(PARENT),
            DIRECTORY: str(self.directory),
            STAGE: summary["stage"],
        }
        name = name_of(self.directory, summary["stage"])
        given = {k: v for k, v in tags.items() if v is not None}
        return str(self._client.create_run(experiment, run_name=name, tags=given).info.run_id)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log scalars of a step, and before the first ones the settings, which are resolved by then."""
        from mlflow.entities import Metric

        self._params()
        now = round(1000 * time.time())
        self._client.log_batch(self.id, metrics=[Metric(k, float(v), now, step) for k, v in values.items()])

    def image(self, name: str, png: Path) -> None:
        """Keep a figure."""
        self._client.log_artifact(self.id, str(png), FIGURES)

    def sync(self) -> None:
        """Do nothing: every call is sent at once."""

    def forget_after(self, step: int) -> None:
        """Do nothing: repeated steps have the same values."""

    def close(self, summary: Mapping[str, Any]) -> None:
        """Add the run's metrics and files, and end it."""
        from mlflow.entities import Metric

        try:
            self._params()
            now = round(1000 * time.time())
            self._client.log_batch(self.id, metrics=[Metric(k, v, now, 0) for k, v in scores_of(summary).items()])
        finally:
            _end(self._client, self.id, self.directory, summary["status"])

    def _params(self) -> None:
        from mlflow.entities import Param

        if self._has_params:
            return
        settings = [(k, str(v)) for k, v in flattened(self._summary["config"]).items() if k not in ("resume", "logger")]
        params = [Param(NOT_IN_NAMES.sub("_", k), v[:LONGEST]) for k, v in settings if v]
        for first in range(0, len(params), AT_ONCE):
            self._client.log_batch(self.id, params=params[first : first + AT_ONCE])
        self._has_params = True


def begun_sweep(directory: Path, command: str) -> str:
    """Return the ID of the parent of a sweep's jobs, which an earlier process may have opened."""
    client, experiment = _opened()
    place = str(directory.resolve()).replace("'", "_")  # which a filter cannot quote
    found = client.search_runs([experiment], f"tags.`{DIRECTORY}` = '{place}'", max_results=1)
    tags = {DIRECTORY: place, STAGE: command}
    run = found[0] if found else client.create_run(experiment, run_name=name_of(directory, command), tags=tags)
    client.update_run(run.info.run_id, status="RUNNING")
    return str(run.info.run_id)


def end(run: str, directory: Path, status: str) -> None:
    """End the parent of a sweep's jobs, with `sweep.csv`."""
    _end(_opened()[0], run, directory, status)


def _end(client: Any, run: str, directory: Path, status: str) -> None:
    try:
        for file in FILES:
            if (directory / file).is_file():
                client.log_artifact(run, str(directory / file))
    finally:
        client.set_terminated(run, ENDED.get(status, "KILLED"))


def _opened() -> tuple[Any, str]:
    """Return a client, and the ID of the experiment, which is created if there is none."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # seconds; MLflow's own is 120, seven times
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if address := os.environ.get("MLFLOW_TRACKING_URI"):
        client = MlflowClient(address)
        return client, _experiment(client, None)
    folder = OUTPUTS.absolute() / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder / ".lock", "opening MLflow"):  # two processes must not create the tables at once
        client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
        return client, _experiment(client, (folder / "files").as_uri())


def _experiment(client: Any, files: str | None) -> str:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "sslrun")
    if (found := client.get_experiment_by_name(name)) is None:
        return str(client.create_experiment(name, files))
    return str(found.experiment_id)


def _found(client: Any, run: str) -> Any:
    """Return a run, or None if the server does not have it, since it is another one."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
