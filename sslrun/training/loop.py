"""The training loop."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sslrun.augment import Rng, generator
from sslrun.base import processes, signals
from sslrun.base.batch_norm import synchronize
from sslrun.base.console import log, progress
from sslrun.base.errors import UserError, is_exhausted
from sslrun.device import Device
from sslrun.run.find import has_checkpoint
from sslrun.tasks.task import Task
from sslrun.training.batches import Batches, Step
from sslrun.training.memory import largest_batch
from sslrun.training.settings import Training
from sslrun.training.state import State, formatted

Evaluation = Callable[[], dict[str, float]]


def fit(
    task: Task,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    training: Training,
    device: Device,
    state: State,
    evaluate: Evaluation,
) -> dict[str, float]:
    """Train a task, from the beginning or, if the run is resumed, from its last checkpoint.

    Args:
        evaluate: returns metrics; called before the first step and `training.evaluations` times, evenly spread.

    Returns:
        Metrics of the last evaluation, `best/step`, `train/loss` and `images_per_second`.

    Raises:
        UserError: the loss or a weight is not finite, or the run cannot be resumed.
        UserError: memory is full; names the largest batch that fits.
        Stopped: on a signal, after the state of the last complete step has been saved.
    """
    run, window, total, stops = state.run, state.window, batches.total, training.evaluated_after(batches.total)
    resumed = run.resumed and has_checkpoint(run.directory)
    start = state.restore() if resumed else 0
    if start > total:
        raise UserError(f"cannot end after {total} steps: {start} steps are done already")
    run.keep_changes()
    if start == total:
        log.info("Nothing to do: all %d steps are done. To train longer, set train.steps or train.epochs", total)
    synchronize(task)
    processes.broadcast(task)
    if not resumed or (start in stops and not state.is_evaluated(start)):  # it was interrupted in an evaluation
        if resumed:
            log.info("The evaluation after step %d was interrupted, and is repeated", start)
        kept = f"step_{start:06d}.pt" if resumed and training.kept_after(start) else None
        state.evaluated(start, _evaluate(task, evaluate), kept)

    with (
        progress(f"{run.stage} step", total, "images", start, batches.size) as advance,
        signals.deferred(),
        state.saved_where_others_end(),
    ):
        window.start_clock()
        for step in batches.after(start):
            for group in optimizer.param_groups:
                group["lr"] = training.learning_rate_at(step.step, total, group["rate"])
            state.begin(step.step)
            window.add(step_within_memory(task, step, total, optimizer, device, training.gradient_clip), step.images)
            advance(1, window.note)
            done = state.ended(step.step)
            if done % training.log_every == 0 or done in stops:
                row = state.log(done, batches.epochs(done))
            also = f"step_{done:06d}.pt" if training.kept_after(done) else None
            stop, due = processes.largest(signals.received(), state.minutes() > training.save_minutes)
            if done in stops:
                metrics = _evaluate(task, evaluate)
                state.evaluated(done, metrics, also)
                log.info("step %d/%d %s", done, total, formatted(row | metrics))
            elif also or stop or due:
                state.save(done, also)
            if stop:
                processes.wait()  # until it is saved: torchrun ends the first process when another one has ended
                raise signals.Stopped(signals.of_rank(int(stop)))
    signals.check()
    state.finished(total)
    return state.summary()


def step_within_memory(
    task: Task, step: Step, total: int, optimizer: torch.optim.Optimizer, device: Device, gradient_clip: float | None
) -> dict[str, Tensor]:
    """Take a step, see `train_step`.

    Raises:
        UserError: memory is full; names the largest batch that fits. The task is of no use then.
    """
    try:
        return train_step(task, step, total, optimizer, device, gradient_clip)
    except (RuntimeError, MemoryError) as error:
        if not is_exhausted(error):
            raise

    # Outside the except clause, which would keep the tensors of the failed step.
    def attempt(n: int) -> None:
        optimizer.state.clear()  # a step that failed in the optimizer leaves a part of it
        device.use(device.precision, device.memory_format)  # a new scaler
        batch = {name: values[:n] for name, values in step.batch.items()}
        for _ in range(2):  # the optimizer has no state yet in the first step's forward and backward pass
            one = Step(step.step, batch, Rng(generator(n)), n)
            with device.eager():
                train_step(task, one, total, optimizer, device, gradient_clip)

    n = processes.count()
    with processes.alone():
        largest = n * largest_batch(attempt, len(step.batch["images"]))
    about = "about " if n > 1 else ""  # a process alone needs less for the whole batch
    advice = f"{about}{largest} fit, as measured: train.batch_size={largest}" if largest else "use a smaller network"
    place = "GPU memory" if device.torch.type == "cuda" else "memory"
    raise UserError(f"out of {place} with batches of {step.images} images: {advice}")


def train_step(
    task: Task, step: Step, total: int, optimizer: torch.optim.Optimizer, device: Device, gradient_clip: float | None
) -> dict[str, Tensor]:
    """Take one optimizer step and return the task's output, detached.

    Args:
        total: number of steps of the whole training.
        gradient_clip: maximum norm of the gradient; None disables clipping.
    """
    task.train()
    device.begin_step()
    task.before_step(step.step, total)
    processes.begin(step.images)
    torch.manual_seed(step.rng.initial_seed() + processes.rank())  # layers that draw from torch, such as drop path
    with device.autocast():
        out = task(step.batch, step.rng)
    optimizer.zero_grad(set_to_none=True)
    loss = out["loss"] * processes.weight() if processes.count() > 1 else out["loss"]
    device.scaler.scale(loss).backward()
    processes.sum_gradients(task)
    if gradient_clip:
        device.scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(task.parameters(), gradient_clip)
    device.scaler.step(optimizer)
    device.scaler.update()
    task.after_step(step.step, total)
    return {k: v.detach() for k, v in out.items()}


@torch.no_grad()
def _evaluate(task: Task, evaluate: Evaluation) -> dict[str, float]:
    task.eval()
    return processes.from_first(evaluate)
