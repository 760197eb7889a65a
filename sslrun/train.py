"""The only training loop there is."""

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sslrun import signals
from sslrun.config import Fraction, Node, NotNegative, Positive, PositiveInt, UserError, build
from sslrun.console import log, progress
from sslrun.data.images import Images
from sslrun.device import Device
from sslrun.optimizers import parameter_groups
from sslrun.run import Run
from sslrun.state import State
from sslrun.window import Window, said

ORDER, VIEWS = 0, 1  # what random numbers are for
SMALLEST_BATCH = 4  # of pretraining: batch norm and contrastive losses compare the pictures of a batch
REHEARSAL = 3.0  # seconds that a rehearsal takes, about


def generator(*numbers: int) -> torch.Generator:
    """Return a CPU generator seeded by a few whole numbers, such as (seed, purpose, epoch, step)."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


def batches_per_epoch(n: int, batch_size: int) -> int:
    """Return how many batches of nearly equal size, none above `batch_size`, n pictures make."""
    return math.ceil(n / batch_size)


def total_steps(n: int, epochs: int | None, steps: int | None, batch_size: int, quiet: bool = False) -> int:
    """Return the length of a training in steps: `epochs` or `steps`, whichever ends first.

    Raises:
        UserError: neither is given.
    """
    by_epochs = epochs * batches_per_epoch(n, batch_size) if epochs else None
    given = [s for s in (by_epochs, steps) if s is not None]
    if not given:
        raise UserError("say how long to train: train.epochs=... or train.steps=...")
    if len(given) == 2 and not quiet:
        which = "train.steps" if steps == min(given) else "train.epochs"
        log.info("train.epochs=%s is %s steps, train.steps=%s: %s ends first.", epochs, by_epochs, steps, which)
    return min(given)


def learning_rate_at(step: int, total: int, warmup: int) -> float:
    """Return the multiple of the learning rate: linear warm-up, then half a cosine down to 0."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def fit(
    model: nn.Module,
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
        model: `model(batch, rng) -> {"loss": ..., ...}`; `before_step(step)`, `after_step(step)` and
            `learning_rates()` are called where it has them.
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
    rates: dict[str, float] = getattr(model, "learning_rates", dict)()
    groups = parameter_groups(model, optimizer_node["weight_decay"], rates)
    optimizer = build(optimizer_node, groups, learning_rate)
    window = Window()
    state = State(run, model, optimizer, device, keep, monitor, window)
    start = state.restore() if run.resumed else 0
    if start > total:
        raise UserError(f"{start} steps are done already, so it cannot end after {total}")
    run.goes_on()
    if start == total:
        log.info("Nothing is left to do: all of its %d steps are done. More is train.steps= or train.epochs=", total)
    stops = {math.ceil(total * i / evaluations) for i in range(1, evaluations + 1)}
    if not run.resumed:
        state.evaluated(0, _evaluate(model, evaluate))

    warmup = int(warmup_fraction * total)
    everything, before = (n * len(images) // per_epoch for n in (total, start))
    with progress(run.stage, everything, "images", before) as advance, signals.later():
        began = time.perf_counter()
        for step, rows, pixels in _gathered(images, start, total, per_epoch, seed):
            epoch, i = divmod(step, per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * learning_rate * learning_rate_at(step, total, warmup)
            batch = _batch(pixels, labels, rows, device)
            out = _step(model, batch, optimizer, device, gradient_clip, step, (seed, VIEWS, epoch, i))
            ended = time.perf_counter()
            window.add(out, len(rows), ended - began)
            began, done = ended, step + 1
            advance(len(rows), window.note)
            if done % log_every == 0 or done in stops:
                row = window.close(step, optimizer.param_groups[-1]["lr"], run)
                began = time.perf_counter()
                run.metrics(done, {"epoch": done / per_epoch, **row})
            also = f"step_{done:06d}.pt" if keep_every is not None and done % keep_every == 0 else None
            stop = signals.asked()
            if done in stops:
                state.evaluated(done, _evaluate(model, evaluate), also)
                log.info("step %d/%d %s", done, total, said(row | state.metrics))
            elif also or stop or time.monotonic() - state.saved_at > 60 * save_minutes:
                state.save(done, also)
            if stop:
                signals.check()
            if state.saved == done:
                began = time.perf_counter()  # evaluations and checkpoints are no part of the speed
    signals.check()
    return {**state.metrics, "best/step": state.best[1], **window.summary()}


def _nothing(step: int) -> None:
    """Stand in for a hook that a model does not have."""


def _gathered(
    images: Tensor | Images, start: int, total: int, per_epoch: int, seed: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield every step, its rows, and their pictures, which are gathered while the step before is computed."""
    order: tuple[int, tuple[Tensor, ...]] = (-1, ())

    def rows_of(step: int) -> Tensor:
        nonlocal order
        epoch, i = divmod(step, per_epoch)
        if order[0] != epoch:
            rows = torch.randperm(len(images), generator=generator(seed, ORDER, epoch))
            order = (epoch, rows.tensor_split(per_epoch))
        return order[1][i]

    with ThreadPoolExecutor(1) as beside:

        def gather(step: int) -> Future[tuple[int, Tensor, Tensor]]:
            rows = rows_of(step)
            return beside.submit(lambda: (step, rows, images[rows]))

        coming = gather(start) if start < total else None
        for step in range(start, total):
            assert coming is not None
            here, coming = coming, gather(step + 1) if step + 1 < total else None
            yield here.result()


def _batch(pixels: Tensor, labels: Tensor | None, rows: Tensor, device: Device) -> dict[str, Tensor]:
    batch = {"images": device.floats(pixels)}
    if labels is not None:
        batch["labels"] = labels[rows.to(labels.device)].to(device.torch, non_blocking=True)
    return batch


def _step(
    model: nn.Module,
    batch: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    device: Device,
    gradient_clip: float | None,
    step: int,
    numbers: tuple[int, ...],
) -> dict[str, Tensor]:
    model.train()
    getattr(model, "before_step", _nothing)(step)
    rng = generator(*numbers)
    torch.manual_seed(rng.initial_seed())  # dropout
    with device.autocast():
        out = model(batch, rng)
    optimizer.zero_grad(set_to_none=True)
    device.scaler.scale(out["loss"]).backward()
    if gradient_clip:
        device.scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), gradient_clip)
    device.scaler.step(optimizer)
    device.scaler.update()
    getattr(model, "after_step", _nothing)(step)
    return {k: v.detach() for k, v in out.items()}


@dataclass(frozen=True)
class Rehearsal:
    """What a few steps took.

    Attributes:
        images_per_second: pictures of the data set, however many views are made of each.
        bytes: of weights, gradients, the optimiser's state, and what is kept for the backward pass of a whole batch.
    """

    images_per_second: float
    bytes: int


def rehearse(
    model: nn.Module,
    images: Tensor | Images,
    device: Device,
    optimizer_node: Node,
    batch_size: int,
    memory: int,
    labels: Tensor | None = None,
) -> Rehearsal:
    """Take a few steps of a training that nothing comes of, to say how fast it is and how much memory it needs.

    The steps are on whole batches if these are quick and fit into half of the memory, else on 32 pictures.
    """
    groups = parameter_groups(model, optimizer_node["weight_decay"], {})
    optimizer = build(optimizer_node, groups, 0.0)
    weights = [p for p in model.parameters() if p.requires_grad]
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    def step(n: int, i: int) -> float:
        began = time.perf_counter()
        rows = torch.randperm(len(images), generator=generator(0, ORDER, i))[:n]
        out = _step(model, _batch(images[rows], labels, rows, device), optimizer, device, None, 0, (0, VIEWS, 0, i))
        float(out["loss"])  # waits for the device
        return time.perf_counter() - began

    few = min(batch_size, len(images), 32)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        step(few, 0)
    activations = sum(size for place, size in kept.items() if place not in own) * batch_size // few
    states = sum(t.nbytes for s in optimizer.state.values() for t in s.values() if isinstance(t, Tensor))
    needed = 2 * sum(w.nbytes for w in weights) + states + activations
    n = min(batch_size, len(images))
    n = n if step(few, 1) * n / few < REHEARSAL and needed < memory / 2 else few
    times: list[float] = []
    while len(times) < 3 or sum(times) < REHEARSAL / 3:
        times.append(step(n, 2 + len(times)))
    times.sort()
    return Rehearsal(n / times[len(times) // 2], needed)


@torch.no_grad()
def _evaluate(model: nn.Module, evaluate: Callable[[], dict[str, float]]) -> dict[str, float]:
    model.eval()
    return evaluate()
