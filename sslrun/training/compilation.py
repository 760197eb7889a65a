"""Which mode of `torch.compile` trains a task fastest on this machine, measured in its own training steps."""

import copy
import time
from collections.abc import Callable

import torch

from sslrun.augment import Rng, generator
from sslrun.base.console import log
from sslrun.config.types import Node
from sslrun.device import Compilation, Device
from sslrun.models.encoder import Encoder
from sslrun.tasks.task import Task
from sslrun.training.autotune import EQUAL, cached_rates
from sslrun.training.batches import Step
from sslrun.training.loop import train_step
from sslrun.training.optimizers import build_optimizer

SHORTEST = 300.0  # seconds of an eager training that is compiled; in a shorter one compiling takes longer than it saves
WARM_UP = 4  # steps before the timed ones, in which a mode compiles and records CUDA graphs
ROUNDS, STEPS = 5, 4  # of alternately timed steps
SECONDS = 30.0  # for all rounds, approximately


def choose(task: Task, encoder: Encoder, step: Step, total: int, config: Node, device: Device) -> Compilation:
    """Set a device to the fastest of its modes; of equally fast ones, to the first, which runs the steps eagerly.

    Training steps of copies of the task are timed, in the first of several processes alone, with its share of the
    batch. The task stays as it is. A mode that fails is not used, and none for a training that is short.

    Args:
        encoder: the part of the task that is compiled.
        step: with a batch of the training.
        total: number of steps of the training.
        config: of the pretraining.

    Returns:
        The mode; None: eager.
    """
    names = [str(mode) for mode in device.compilations]
    network, size, n = config["backbone"], config["dataset"]["image_size"], len(step.batch["images"])
    about = [network, size, n, device.precision, device.memory_format, config["pretext"], config["optimizer"]]
    rates = cached_rates(device, about, names, lambda: _measured(task, encoder, step.batch, total, config, device))
    eager, best = rates.get("None", 0.0), max(rates.values(), default=0.0)
    device.compiled = None
    if not eager or total * n < SHORTEST * eager:
        log.info("Autotuning of torch.compile: the training is too short for it")
        return None
    device.compiled = next(mode for mode in device.compilations if rates[str(mode)] >= EQUAL * best)
    texts = [f"{name.replace('None', 'eager')} {rate:.0f}" for name, rate in rates.items() if rate]
    log.info("Autotuning of torch.compile (images/s of training): %s", ", ".join(texts))
    return device.compiled


def _measured(
    task: Task, encoder: Encoder, batch: dict[str, torch.Tensor], total: int, config: Node, device: Device
) -> dict[str, float]:
    """Return the images/s of each mode by its name, 0 for one that fails; nothing if the training is too short."""
    n = len(batch["images"])

    def copied(mode: Compilation) -> Callable[[int], float]:
        """Return a function that trains a copy of the task for some steps, and returns their mean seconds."""
        own, part = copy.deepcopy((task, encoder))
        optimizer = build_optimizer(config["optimizer"], own, 0.0)
        if mode:
            part.compile(mode=mode)

        def seconds(steps: int) -> float:
            device.compiled = mode
            device.wait()
            began = time.perf_counter()
            for i in range(steps):
                one = Step(i, batch, Rng(generator(i)), n)
                train_step(own, one, total, optimizer, device, config["train"]["gradient_clip"])
            device.wait()
            return (time.perf_counter() - began) / steps

        return seconds

    times: dict[Compilation, list[float]] = {}
    copies: dict[Compilation, Callable[[int], float]] = {}
    on_gpu = device.torch.type == "cuda"
    with torch.random.fork_rng([torch.cuda.current_device()] if on_gpu else []):
        for mode in device.compilations:
            try:
                copies[mode] = copied(mode)
                copies[mode](WARM_UP)
                times[mode] = [copies[mode](1)]
            except Exception as error:  # of a compiler or a backbone, which may raise anything
                log.info("device.compile=%s cannot be used here: %s", mode, str(error).split("\n")[0])
                continue
            if mode is None and total * times[mode][0] < SHORTEST:
                return {}
        began = time.perf_counter()
        for _ in range(ROUNDS):
            for mode, taken in times.items():
                if len(taken) < 3 or time.perf_counter() - began < SECONDS:
                    taken.append(copies[mode](STEPS))
    if on_gpu:
        torch.cuda.empty_cache()
    return {str(mode): round(n / min(times[mode]), 1) if mode in times else 0.0 for mode in device.compilations}
