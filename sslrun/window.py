"""What a training says between two lines of its log, and when it must stop."""

import time
from typing import Any

import torch
from torch import Tensor

from sslrun import checkpoint
from sslrun.config import UserError
from sslrun.console import log
from sslrun.device import Device
from sslrun.run import Run

EXPLODED = 2.0  # a loss that rises by so many times its start is worth a warning


class Window:
    """Sums of what the model returned since the last line of metrics; each batch counts by its size."""

    def __init__(self) -> None:
        self.rows: list[tuple[dict[str, Tensor], int]] = []
        self.seconds = self.total_seconds = 0.0
        self.images = 0
        self.note = ""
        self.last: dict[str, float] = {}
        self.first: float | None = None
        self.warned = False

    def add(self, out: dict[str, Tensor], n: int, seconds: float) -> None:
        self.rows.append((out, n))
        self.images += n
        self.seconds += seconds

    def close(self, step: int, rate: float, run: Run) -> dict[str, float]:
        """Return the means; the device is waited for here and nowhere else."""
        began = time.perf_counter()
        losses = torch.stack([out["loss"] for out, _ in self.rows]).float().cpu()
        self.seconds += time.perf_counter() - began
        if not losses.isfinite().all():
            bad = step - len(losses) + 1 + int((~losses.isfinite()).nonzero()[0, 0])
            raise diverged(f"the loss became {losses[~losses.isfinite()][0]:g}", bad + 1, rate, run)
        n = sum(k for _, k in self.rows)
        sums = {k: sum(out[k].float() * m for out, m in self.rows) / n for k in self.rows[0][0]}
        self.last = {f"train/{k}": float(v) for k, v in sums.items()}
        loss = self.last["train/loss"]
        self.note = f"loss {loss:.3f}"
        self.first = loss if self.first is None else self.first
        if not self.warned and loss > self.first + EXPLODED * max(1.0, abs(self.first)):
            self.warned = True
            log.warning(
                "The loss rose from %.3g to %.3g by step %d, at learning rate %.3g: try train.learning_rate=%.1g or "
                "train.gradient_clip=1.", self.first, loss, step + 1, rate, rate / 10,
            )  # fmt: skip
        speed = n / self.seconds
        self.total_seconds += self.seconds
        self.rows, self.seconds = [], 0.0
        return {**self.last, "learning_rate": rate, "images_per_second": speed}

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs to log the same means."""
        rows = [({k: float(v) for k, v in out.items()}, n) for out, n in self.rows]
        kept = {"seconds": self.seconds, "last": self.last, "first": self.first, "warned": self.warned}
        return {"rows": rows, **kept}

    def restore(self, state: dict[str, Any], device: Device) -> None:
        self.rows = [({k: torch.tensor(v, device=device.torch) for k, v in out.items()}, n) for out, n in state["rows"]]
        self.images, self.seconds = sum(n for _, n in self.rows), state["seconds"]
        self.last, self.first, self.warned = state["last"], state["first"], state["warned"]

    def summary(self) -> dict[str, float]:
        if not self.total_seconds:
            return self.last
        return {**self.last, "images_per_second": round(self.images / self.total_seconds, 1)}


def diverged(what: str, step: int, rate: float, run: Run) -> UserError:
    """Return the error for a loss or weight that is not finite: what, where, and what to try."""
    return UserError(
        f"{what} in step {step} at learning rate {rate:.3g}; try train.learning_rate={rate / 10:.1g}, "
        f"train.gradient_clip=1 or device.precision=fp32. The last good checkpoint is "
        f"{run.directory / checkpoint.LAST}"
    )


def said(row: dict[str, float]) -> str:
    """Return a row of metrics as people read it."""
    names = [k for k in row if k not in ("learning_rate", "epoch")]
    return "  ".join(f"{k.split('/')[-1].replace('_', ' ')} {row[k]:.4g}" for k in names)
