"""The only training loop there is."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sslrun.augment import VIEWS, Rng, generator
from sslrun.base import signals
from sslrun.base.console import log, progress
from sslrun.base.errors import UserError
from sslrun.config.build import build
from sslrun.config.types import Fraction, Node, NotNegative, Positive, PositiveInt
from sslrun.data.images import Images
from sslrun.device import Device
from sslrun.runs.run import Run
from sslrun.tasks.task import Task
from sslrun.training.batches import batch_of, gathered
from sslrun.training.optimizers import parameter_groups
from sslrun.training.settings import batches_per_epoch, learning_rate_at, total_steps
from sslrun.training.state import State, Window, said


def fit(
    task: Task,
    images: Tensor | Images,
    labels: Tensor | None,
    run: Run,
    device: Device,
    optimizer_node: Node,
    evaluate: Callable[[], dict[str, float]],
    monitor: str,
    seed: int,
    keep: dict[str, Any],
    *,
    epochs: PositiveInt | None,
    steps: PositiveInt | None,
    batch_size: PositiveInt,
    learning_rate: Positive,
    warmup_fraction: Fraction,
    gradient_clip: NotNegative | None,
    evaluations: PositiveInt,
    log_every: PositiveInt,
    save_minutes: Positive,
    keep_every: PositiveInt | None,
) -> dict[str, float]:
    """Train a model, with the order of the data and the views drawn from (seed, epoch, step), not from history.

    Args:
        images: N of them, `3 x S x S`, uint8, on the device or not.
        labels: N, or None.
        evaluate: returns metrics; called before the first step and `evaluations` times, evenly spread.
        monitor: the metric of which the highest value makes `best.pt`.
        keep: goes into every checkpoint.
        epochs, steps: whichever ends first; null for no limit.
        warmup_fraction: part of the steps with a rising learning rate; after it a cosine falls to 0.
        gradient_clip: largest norm of the gradient; null for none.
        log_every: steps between lines of `metrics.jsonl`.
        save_minutes: a checkpoint is made after so many minutes, too, not only after evaluations.
        keep_every: steps between checkpoints that stay; null keeps the last, the one before it, and the best.

    Returns:
        The last evaluation's metrics, and `best/step`, `train/loss`, `images_per_second`.

    Raises:
        UserError: the loss or a weight is not finite.
        Stopped: a signal came; the state after the last whole step is saved.
    """
    per_epoch = batches_per_epoch(len(images), batch_size)
    total = total_steps(len(images), epochs, steps, batch_size)
    groups = parameter_groups(task, optimizer_node["weight_decay"], task.learning_rates())
    optimizer = build(optimizer_node, groups, learning_rate)
    window = Window()
    state = State(run, task, optimizer, device, keep, monitor, window)
    start = state.restore() if run.resumed else 0
    if start > total:
        raise UserError(f"{start} steps are done already, so it cannot end after {total}")
    run.goes_on()
    if start == total:
        log.info("Nothing is left to do: all of its %d steps are done. More is train.steps= or train.epochs=", total)
    stops = {math.ceil(total * i / evaluations) for i in range(1, evaluations + 1)}
    if not run.resumed:
        state.evaluated(0, _evaluate(task, evaluate))

    warmup = int(warmup_fraction * total)
    everything, before = (n * len(images) // per_epoch for n in (total, start))
    with progress(run.stage, everything, "images", before) as advance, signals.later():
        began = time.perf_counter()
        for step, rows, pixels in gathered(images, start, total, per_epoch, seed):
            epoch, i = divmod(step, per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * learning_rate * learning_rate_at(step, total, warmup)
            batch = batch_of(pixels, labels, rows, device)
            out = train_step(task, batch, optimizer, device, gradient_clip, step, total, (seed, VIEWS, epoch, i))
            ended = time.perf_counter()
            window.add(out, len(rows), ended - began)
            began, done = ended, step + 1
            advance(len(rows), window.note)
            if done % log_every == 0 or done in stops:
                row = window.close(step, optimizer.param_groups[-1]["lr"], run)
                began = time.perf_counter()
                run.log.scalars(done, {"epoch": done / per_epoch, **row})
            also = f"step_{done:06d}.pt" if keep_every is not None and done % keep_every == 0 else None
            stop = signals.asked()
            if done in stops:
                state.evaluated(done, _evaluate(task, evaluate), also)
                log.info("step %d/%d %s", done, total, said(row | state.metrics))
            elif also or stop or time.monotonic() - state.saved_at > 60 * save_minutes:
                state.save(done, also)
            if stop:
                signals.check()
            if state.saved == done:
                began = time.perf_counter()  # evaluations and checkpoints are no part of the speed
    signals.check()
    return {**state.metrics, "best/step": state.best[1], **window.summary()}


def train_step(
    task: Task,
    batch: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    device: Device,
    gradient_clip: float | None,
    step: int,
    total: int,
    numbers: tuple[int, ...],
) -> dict[str, Tensor]:
    task.train()
    task.before_step(step, total)
    rng = Rng(generator(*numbers))
    torch.manual_seed(rng.initial_seed())  # dropout
    with device.autocast():
        out = task(batch, rng)
    optimizer.zero_grad(set_to_none=True)
    device.scaler.scale(out["loss"]).backward()
    if gradient_clip:
        device.scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(task.parameters(), gradient_clip)
    device.scaler.step(optimizer)
    device.scaler.update()
    task.after_step(step, total)
    return {k: v.detach() for k, v in out.items()}


@torch.no_grad()
def _evaluate(task: Task, evaluate: Callable[[], dict[str, float]]) -> dict[str, float]:
    task.eval()
    return evaluate()
