"""Runs at Weights & Biases: settings, metrics and figures, in a group for each sweep or study.

Its own variables say where: `WANDB_PROJECT`, `WANDB_ENTITY`, `WANDB_MODE`, `WANDB_API_KEY`. Without a key, or where the
server cannot be reached, the run is kept offline in the run directory; `wandb sync` sends it.
"""

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sslrun.base.console import log
from sslrun.config.types import Node
from sslrun.run.background import reason_of
from sslrun.run.log import GROUP, name_of, scores_of

RUN = "wandb_run"  # entry of a run's summary
TIME_LIMIT = 20  # seconds, to reach the server, and to send what is left at the end


class WandB:
    """One run at Weights & Biases; that of a resumed run is continued.

    Args:
        directory: of the run.
        summary: of the run, which grows.

    Attributes:
        entries: for the summary: the run's ID.
        for_children: environment variables of the runs that this one starts.
        place: where it is, in words.

    Raises:
        Exception: the package is not installed.
    """

    def __init__(self, directory: Path, summary: Mapping[str, Any]) -> None:
        import wandb

        self._summary, self._wandb = summary, wandb
        name = name_of(directory, summary["stage"])
        self.id = summary.get(RUN) or uuid.uuid4().hex[:12]
        self.entries, self.for_children = {RUN: self.id}, {GROUP: name}
        settings = wandb.Settings(console="off", silent=True, init_timeout=TIME_LIMIT, finish_timeout=TIME_LIMIT)
        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False, verify=False) else "offline")
        given: Node = {"id": self.id, "name": name, "dir": str(directory), "job_type": summary["stage"]}
        given |= {"group": os.environ.get(GROUP), "entity": os.environ.get("WANDB_ENTITY")}
        given |= {"project": os.environ.get("WANDB_PROJECT", "sslrun"), "resume": "allow", "reinit": "create_new"}
        given |= {"mode": mode, "settings": settings, "config": summary["config"]}
        try:
            self._run: Any = wandb.init(**given)
        except wandb.errors.CommError as error:
            log.warning("wandb: %s", reason_of(error))
            self.id = self.entries[RUN] = uuid.uuid4().hex[:12]
            self._run = wandb.init(**given | {"id": self.id, "mode": "offline"})
        offline = self._run.settings.mode == "offline"
        folder = Path(self._run.dir).parent
        self.place = f"offline; send it with: wandb sync {folder}" if offline else str(self._run.url or mode)
        self._run.define_metric("*", step_metric="step")  # steps of a resumed run are repeated

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log scalars of a step."""
        self._run.log({"step": step, **values})

    def image(self, name: str, png: Path) -> None:
        """Log an image."""
        self._run.log({f"figures/{name}": self._wandb.Image(str(png))})

    def sync(self) -> None:
        """Do nothing: a process of the library sends everything."""

    def forget_after(self, step: int) -> None:
        """Do nothing: repeated steps have the same values."""

    def close(self, summary: Mapping[str, Any]) -> None:
        """Add the resolved settings and the run's metrics, and end it."""
        self._run.config.update(self._summary["config"], allow_val_change=True)
        self._run.summary.update(scores_of(summary))
        self._run.finish(exit_code=int(summary["status"] != "finished"))
