"""The state of a training: checkpoints, logged metrics, and checks for divergence."""

import hashlib
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sslrun.base import processes
from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.base.machine import is_first
from sslrun.base.text import metric
from sslrun.device import Device
from sslrun.models.weights import load_state
from sslrun.run import checkpoint
from sslrun.run.find import BEST, LAST, PREVIOUS
from sslrun.run.resume import differing_keys
from sslrun.run.run import Run
from sslrun.tasks.task import Task

HIDDEN = (
    "learning_rate",
    "epoch",
    "images_per_second",
    "images",
    "alignment",
    "uniformity",
    "confidence_certified",
    "confidence_correct",
    "confidence_accepted",
)  # from the lines of the log
EXPLODED = 2.0  # a warning is logged if the loss rises by this multiple of its first value


class Window:
    """The task's output since the last line of metrics; means are weighted by batch size.

    Attributes:
        note: loss of the last line, for the progress bar.
    """

    def __init__(self) -> None:
        self.rows: list[tuple[dict[str, Tensor], int]] = []
        self.collected = 0  # of the rows, those that are means over all processes
        self.seconds = self.total_seconds = 0.0
        self.images = 0
        self.note = ""
        self.last: dict[str, float] = {}
        self.first: float | None = None
        self.warned = False
        self.start_clock()

    def start_clock(self) -> None:
        """Restart the clock, so that the time since the last step does not count."""
        self._began = time.perf_counter()

    def add(self, out: dict[str, Tensor], n: int) -> None:
        """Add this process's output of a step with n images, and the time since the previous one."""
        self.rows.append((out, n))
        self.images += n
        self._count_seconds()

    def _count_seconds(self) -> None:
        self.seconds += time.perf_counter() - self._began
        self.start_clock()

    def _collect(self) -> None:
        """Replace the outputs of this process by the means over all processes."""
        own = self.rows[self.collected :]
        if processes.count() > 1 and own:
            keys = list(own[0][0])
            values = torch.stack([torch.stack([out[k].float() for k in keys]) for out, _ in own])
            means = processes.total(values * processes.weight())
            self.rows[-len(own) :] = [
                (dict(zip(keys, row, strict=True)), n) for row, (_, n) in zip(means, own, strict=True)
            ]
        self.collected = len(self.rows)

    def close(self, steps: int, rate: float, run: Run) -> dict[str, float]:
        """Return the means since the last line and clear the window. Only this synchronizes with the device."""
        self._collect()
        keys = list(self.rows[0][0])
        values = torch.stack([torch.stack([out[k].float() for k in keys]) for out, _ in self.rows]).cpu()
        losses = values[:, keys.index("loss")]
        self._count_seconds()
        if not losses.isfinite().all():
            bad = steps - len(losses) + 1 + int((~losses.isfinite()).nonzero()[0, 0])
            value = f"{losses[~losses.isfinite()][0]:g}"
            raise diverged(f"the loss became {value}", bad, rate, run) if bad > 1 else undefined(value, run)
        n = sum(k for _, k in self.rows)
        sums = sum(row * (m / n) for row, (_, m) in zip(values, self.rows, strict=True))
        self.last = {f"train/{k}": float(v) for k, v in zip(keys, sums, strict=True)}
        loss = self.last["train/loss"]
        self.note = metric("train/loss", loss)
        self.first = loss if self.first is None else self.first
        if not self.warned and loss > self.first + EXPLODED * max(1.0, abs(self.first)):
            self.warned = True
            log.warning(
                "The loss rose from %.3g to %.3g by step %d, at learning rate %.3g: try train.learning_rate=%.1g or "
                "train.gradient_clip=1.", self.first, loss, steps, rate, rate / 10,
            )  # fmt: skip
        speed = n / self.seconds
        self.total_seconds += self.seconds
        self.rows, self.collected, self.seconds = [], 0, 0.0
        self.start_clock()
        return {**self.last, "learning_rate": rate, "images_per_second": speed}

    def state(self) -> dict[str, Any]:
        """Return the state that a resumed run needs to log the same means."""
        self._collect()
        keys = list(self.rows[0][0]) if self.rows else []
        values = torch.stack([torch.stack([out[k] for k in keys]) for out, _ in self.rows]).tolist() if keys else []
        rows = [(dict(zip(keys, row, strict=True)), n) for row, (_, n) in zip(values, self.rows, strict=True)]
        kept = {"seconds": self.seconds, "last": self.last, "first": self.first, "warned": self.warned}
        return {"rows": rows, **kept}

    def restore(self, state: dict[str, Any], device: Device) -> None:
        """Restore what `state` returned."""
        self.rows = [({k: torch.tensor(v, device=device.torch) for k, v in out.items()}, n) for out, n in state["rows"]]
        self.collected = len(self.rows)
        self.images, self.seconds = sum(n for _, n in self.rows), state["seconds"]
        self.last, self.first, self.warned = state["last"], state["first"], state["warned"]

    def summary(self) -> dict[str, float]:
        """Return the last means, and the mean speed."""
        if not self.total_seconds:
            return self.last
        return {**self.last, "images_per_second": round(self.images / self.total_seconds, 1)}


def diverged(what: str, step: int, rate: float, run: Run) -> UserError:
    """Return the error for a loss or weight that is not finite."""
    return UserError(
        f"{what} in step {step} at learning rate {rate:.3g}; try train.learning_rate={rate / 10:.1g}, "
        f"train.gradient_clip=1 or device.precision=fp32. The last good checkpoint is "
        f"{run.directory / LAST}"
    )


def undefined(loss: str, run: Run) -> UserError:
    """Return the error for a loss that is not finite before any update of the weights."""
    exact = run.config.get("device", {}).get("precision") == "fp32"
    return UserError(
        f"the loss is {loss} in step 1, before any update of the weights, so no learning rate can help: look at "
        f"the other settings{'' if exact else ', try device.precision=fp32'}, and at the images with sslrun data check"
    )


def formatted(row: dict[str, float]) -> str:
    """Format a row of metrics for people, with the names of training and validation metrics in full."""
    shown = [metric(k, v) for k, v in row.items() if not k.endswith(HIDDEN)]
    speed = [f"{row['images_per_second']:,.0f} images/s"] if "images_per_second" in row else []
    return "  ".join([*shown, *speed])


class State:
    """Saves, restores and logs a training: weights, optimizer, scaler, best score, metrics not logged yet.

    Args:
        keep: entries for every checkpoint.
        monitor: metric whose highest value determines `best.pt`; where it is not measured, the last state is the best.
            With None nothing is chosen: `best.pt` is the state after the last step, and written only then.
        metrics: known before the training.

    Attributes:
        metrics: metrics of the last evaluation, or those known before.
        best: highest value of `monitor`, and its step.
    """

    def __init__(
        self,
        run: Run,
        task: Task,
        optimizer: torch.optim.Optimizer,
        device: Device,
        keep: dict[str, Any],
        monitor: str | None,
        metrics: dict[str, float] | None = None,
    ) -> None:
        self.run, self.task, self.optimizer, self.device = run, task, optimizer, device
        self.keep, self.monitor, self.window = keep, monitor, Window()
        self.best: tuple[float, int] = (-math.inf, 0)
        self.metrics = metrics or {}
        self._saved_at = time.monotonic()
        self._evaluated_at = 0  # steps
        self._whole: tuple[int, list[Tensor] | None] = (0, None)  # steps, and the buffers within the next one

    def begin(self, done: int) -> None:
        """Begin a step, after `done` others. Several processes keep the buffers, for `saved_where_others_end`."""
        if processes.count() > 1 and self.device.torch.type == "cpu":
            self._whole = done, [b.clone() for b in self.task.buffers()]

    def ended(self, step: int) -> int:
        """End a step; return how many are done."""
        self._whole = step + 1, None
        return step + 1

    @contextmanager
    def saved_where_others_end(self) -> Iterator[None]:
        """Save the state of the last whole step if another process ends, so that a collective fails.

        Raises:
            UserError: another process has ended.
        """
        place = processes.from_first(self.run.directory.as_posix)
        try:
            yield
        except RuntimeError as error:
            if not processes.is_lost(error):
                raise
            if not is_first() or self.device.torch.type != "cpu":  # a GPU may wait for the others for ever
                raise UserError(
                    f"another process has ended, or did not answer; go on from the last checkpoint: resume={place}"
                ) from error
            done, buffers = self._whole
            if buffers is not None:
                for now, before in zip(self.task.buffers(), buffers, strict=True):
                    now.copy_(before)
            processes.leave()
            self.window.rows = self.window.rows[: self.window.collected]  # the others are of this process alone
            self.save(done)
            raise UserError(
                f"another process has ended, or did not answer; the state after step {done} is saved. Go on with any "
                f"number of processes: resume={place}"
            ) from error

    def log(self, steps: int, epochs: float) -> dict[str, float]:
        """Log the means since the last line of metrics, and return them.

        Raises:
            UserError: a loss is not finite.
        """
        row = self.window.close(steps, self.optimizer.param_groups[-1]["lr"], self.run)
        self.run.log.scalars(steps, {"epoch": epochs, **row})
        return row

    def minutes(self) -> float:
        """Return the minutes since the last checkpoint."""
        return (time.monotonic() - self._saved_at) / 60

    def evaluated(self, step: int, metrics: dict[str, float], also: str | None = None) -> None:
        """Log an evaluation and save `last.pt`, and `best.pt` if the score is at least the best so far."""
        self.metrics = metrics or self.metrics
        self._evaluated_at = step
        self.run.log.scalars(step, metrics)
        if self.monitor is not None:
            value = metrics.get(self.monitor, float(step))
            if value >= self.best[0]:
                self._keep_best(value, step)
        self.save(step, also)

    def is_evaluated(self, step: int) -> bool:
        """Return whether the state after this many steps has been evaluated."""
        return self._evaluated_at == step

    def finished(self, step: int) -> None:
        """Save `best.pt` after the last step if nothing is chosen."""
        if self.monitor is None:
            self._keep_best(float(step), step)

    def refuse_differences(self, step: int) -> None:
        """Raise if the processes are not at the same step with the same weights, queues and centers."""
        if processes.count() > 1:
            processes.refuse_differences(**{f"weights after {step} steps": self._digest()})

    def _digest(self) -> str:
        """Return a hash of the task's state."""
        digest = hashlib.blake2b(digest_size=8)
        for value in self.task.state_dict().values():
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def _keep_best(self, value: float, step: int) -> None:
        self.best = (value, step)
        if is_first():
            checkpoint.save(self.run.directory / BEST, self._content(step))

    def save(self, step: int, also: str | None = None) -> None:
        """Save the state after this many steps as `last.pt`, and under the name `also`, if given.

        Raises:
            UserError: the state of a process is not that of the others.
        """
        trainer = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.device.scaler.state_dict(),
            "window": self.window.state(),
        }
        self.refuse_differences(step)
        directory, content = self.run.directory, self._content(step) | trainer
        self.run.log.sync()
        if also and is_first():
            checkpoint.save(directory / also, content)
        if is_first():
            checkpoint.save(directory / LAST, content, before=directory / PREVIOUS)
        self._saved_at = time.monotonic()
        self.window.start_clock()  # exclude evaluations and checkpoints from the speed

    def _content(self, step: int) -> dict[str, Any]:
        state = self.task.state_dict()
        finite = torch.stack([v.isfinite().all() for v in state.values()]).tolist()
        bad = [k for k, ok in zip(state, finite, strict=True) if not ok]
        if bad:
            rate = self.optimizer.param_groups[-1]["lr"]
            raise diverged(f"{len(bad)} weights, the first {bad[0]}, became infinite", step, rate, self.run)
        return {
            **self.keep,
            "downstream": self.task.downstream,
            "step": step,
            "best": list(self.best),
            "metrics": self.metrics,
            "evaluated_at": self._evaluated_at,
            "model": state,
        }

    def restore(self) -> int:
        """Restore the newest intact checkpoint and return its step.

        Raises:
            UserError: no checkpoint is intact, or it belongs to another training.
        """
        path, content = checkpoint.newest_intact(self.run.directory, resumable=True)
        last = self.run.directory / LAST
        if path != last and last.exists():
            os.replace(last, last.with_name("damaged.pt"))  # it must not overwrite the intact one
        others = differing_keys(self.keep.get("config", {}), content.get("config", {}))
        if others:
            raise UserError(f"{path} has other settings than this run: {', '.join(others)} differ")
        load_state(self.task, content["model"], path)
        try:
            self.optimizer.load_state_dict(content["optimizer"])
            for p, state in self.optimizer.state.items():  # fused kernels assume the strides of the weights
                same = {k: v for k, v in state.items() if isinstance(v, Tensor) and v.shape == p.shape}
                state |= {k: torch.empty_like(p).copy_(v) for k, v in same.items()}
            if content["scaler"]:  # only that of fp16 has a state
                self.device.scaler.load_state_dict(content["scaler"])
            self.best, self.metrics = (content["best"][0], content["best"][1]), content["metrics"]
            self._evaluated_at = content.get("evaluated_at", content["step"])
            if "window" in content:
                self.window.restore(content["window"], self.device)
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{path} does not match this training ({error!r}): start a new run") from None
        self.run.log.forget_after(content["step"])
        log.info("Resuming after step %d", content["step"])
        return content["step"]

    def summary(self) -> dict[str, float]:
        """Return the metrics of the last evaluation, `best/step`, the last means and the speed."""
        return {**self.metrics, "best/step": self.best[1], **self.window.summary()}
