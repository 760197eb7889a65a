"""What a training saves and goes on from."""

import math
import os
import time
from typing import Any

import torch
from torch import nn

from sslrun import checkpoint
from sslrun.config import UserError
from sslrun.console import log
from sslrun.device import Device
from sslrun.run import Run, differing_keys
from sslrun.window import Window, diverged


class State:
    """What is saved and restored: weights, optimiser, scaler, the step, the best so far, and what is not yet logged."""

    def __init__(
        self,
        run: Run,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: Device,
        keep: dict,
        monitor: str,
        window: Window,
    ) -> None:
        self.run, self.model, self.optimizer, self.device = run, model, optimizer, device
        self.keep, self.monitor, self.window = keep, monitor, window
        self.best: tuple[float, int] = (-math.inf, 0)
        self.metrics: dict[str, float] = {}
        self.saved, self.saved_at = -1, time.monotonic()

    def evaluated(self, step: int, metrics: dict[str, float], also: str | None = None) -> None:
        """Log an evaluation and save `last.pt`, and `best.pt` if it is not below the best so far."""
        self.metrics = metrics
        self.run.metrics(step, metrics)
        value = metrics.get(self.monitor, float(step))
        if value >= self.best[0]:
            self.best = (value, step)
            checkpoint.save(self.run.directory / checkpoint.BEST, self._content(step))
        self.save(step, also)

    def save(self, step: int, also: str | None = None) -> None:
        """Save the state after so many steps as `last.pt`; `also` is the name of a checkpoint that stays."""
        trainer = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.device.scaler.state_dict(),
            "window": self.window.state(),
        }
        directory, content = self.run.directory, self._content(step) | trainer
        self.run.sync()
        if also:
            checkpoint.save(directory / also, content)
        checkpoint.save(directory / checkpoint.LAST, content, before=directory / checkpoint.PREVIOUS)
        self.saved, self.saved_at = step, time.monotonic()

    def _content(self, step: int) -> dict[str, Any]:
        state = self.model.state_dict()
        bad = [k for k, v in state.items() if not v.isfinite().all()]
        if bad:
            rate = self.optimizer.param_groups[-1]["lr"]
            raise diverged(f"{len(bad)} weights, the first {bad[0]}, became infinite", step, rate, self.run)
        return {**self.keep, "step": step, "best": list(self.best), "metrics": self.metrics, "model": state}

    def restore(self) -> int:
        """Go on from the newest checkpoint that is whole; return its step."""
        path, content = checkpoint.newest(self.run.directory, to_go_on=True)
        last = self.run.directory / checkpoint.LAST
        if path != last and last.exists():
            os.replace(last, last.with_name("damaged.pt"))  # it must not displace the good one
        others = differing_keys(self.keep.get("config", {}), content.get("config", {}))
        if others:
            raise UserError(f"{path} was made with other settings than this run's: {', '.join(others)} differ")
        checkpoint.load_state(self.model, content["model"], path)
        try:
            self.optimizer.load_state_dict(content["optimizer"])
            self.device.scaler.load_state_dict(content["scaler"])
            self.best, self.metrics = (content["best"][0], content["best"][1]), content["metrics"]
            if "window" in content:
                self.window.restore(content["window"], self.device)
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{path} does not hold the state of this training ({error!r}): start a new run") from None
        self.run.forget_after(content["step"])
        log.info("Going on after step %d", content["step"])
        return content["step"]
