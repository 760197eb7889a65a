"""Which mode of `torch.compile` trains a backbone fastest on this machine.

$SSLRUN_CACHE/compile.json    network, images, machine, versions -> images/s of each mode
"""

import copy
import gc
import itertools
import statistics
import time

import torch

from sslrun.base import processes
from sslrun.base.console import log
from sslrun.config.types import Node
from sslrun.device import Compilation, Device
from sslrun.models.encoder import build_encoder
from sslrun.training.autotune import MAX_NOISE, cached_rates

SHORTEST = 600.0  # seconds of an eager training that is compiled: in a shorter one compiling takes longer than it saves
GAIN = 1.05  # ratio of speeds, below which steps run eagerly
WARM_UP = 3  # steps before the timed ones, in which a mode compiles and records CUDA graphs
ROUNDS = 5  # of alternately timed steps
SECONDS = 0.3  # of a mode in a round, at least one step
TOLERANCE = 0.05  # relative difference of a first loss: of bf16, in other kernels


def choose(device: Device, backbone: Node, image_size: int, images: int, steps: int) -> Node:
    """Set a device to the fastest of its modes, as measured; None runs the steps eagerly.

    A mode that fails, or that computes something else, is not used; none in a short training, nor in several processes,
    where batch norm is synchronized between the parts that could be compiled.

    Args:
        backbone: node of the network to measure.
        images: number of images, of all views, in a step.
        steps: of the training.

    Returns:
        `compile`, as a key of the device's config.
    """
    eagerly = {"compile": None}
    if processes.count() > 1:
        log.info("device.compile=auto: several processes train eagerly")
        return eagerly
    about = [backbone, image_size, images, device.precision, device.memory_format]
    names = [str(mode) for mode in device.compilations]
    rates = cached_rates(
        device, about, names, lambda: _measured(device, backbone, image_size, images, steps), "compile.json"
    )
    eager = rates.get(str(None), 0.0)
    if not eager:
        log.info("device.compile=auto: eager, since the training is short or the times vary too much")
        return eagerly
    best = max(device.compilations, key=lambda mode: rates.get(str(mode), 0.0))
    if rates[str(best)] >= GAIN * eager and steps * images >= SHORTEST * eager:
        device.compiled = best
    texts = [f"{name.replace('None', 'eager')} {rate:.0f}" for name, rate in rates.items()]
    chosen = device.compiled or "eager"
    log.info("device.compile=auto: %s (images/s, forward and backward pass: %s)", chosen, ", ".join(texts))
    return {"compile": device.compiled}


def _measured(device: Device, backbone: Node, image_size: int, images: int, steps: int) -> dict[str, float]:
    """Return the images/s of the modes that work; nothing if the training is short, or if the times vary too much."""
    on_gpu = device.torch.type == "cuda"
    trials: dict[Compilation, _Trial] = {}
    times: dict[Compilation, list[float]] = {}
    first: list[float] = []
    try:
        with torch.random.fork_rng([torch.cuda.current_device()] if on_gpu else []):
            for i, mode in itertools.product(range(1 + ROUNDS), device.compilations):
                try:
                    if i == 0:
                        trials[mode] = _Trial(device, mode, backbone, image_size, images)
                        first.append(trials[mode].loss)
                    if mode in trials:
                        times.setdefault(mode, []).append(trials[mode].seconds())
                except Exception as error:  # of a compiler or a backbone, which may raise anything
                    log.info("device.compile=%s cannot be used here: %s", mode, str(error).split("\n")[0])
                    trials.pop(mode, None)
                    times.pop(mode, None)
                if i == 0 and mode is None and (mode not in times or steps * times[mode][0] < SHORTEST):
                    return {}
                if mode in trials and abs(trials[mode].loss - first[0]) > TOLERANCE * abs(first[0]):
                    log.warning("device.compile=%s is not used: it computes something else", mode)
                    del trials[mode], times[mode]
    finally:
        trials.clear()
        gc.collect()  # a compiled module refers to itself
        torch.compiler.reset()  # and the memory of CUDA graphs is kept otherwise
        if on_gpu:
            torch.cuda.empty_cache()
    if None not in times:  # it failed after its first step
        return {}
    best = min(times.values(), key=min)
    if statistics.median(best) > MAX_NOISE * min(best):
        return {}
    return {str(mode): round(images / min(taken), 1) for mode, taken in times.items()}


class _Trial:
    """A network of its own, compiled in a mode, and warmed up. Its weights are the same for every mode.

    Attributes:
        loss: of its first step.
    """

    def __init__(self, device: Device, mode: Compilation, backbone: Node, image_size: int, images: int) -> None:
        self._device = copy.copy(device)
        self._device.compiled = mode
        torch.manual_seed(0)
        encoder = build_encoder(backbone, image_size, [0.5] * 3, [0.25] * 3)
        self._encoder = self._device.put(encoder).train()
        self._device.compile(encoder)
        pixels = torch.randint(256, (images, 3, image_size, image_size), dtype=torch.uint8)
        self._pixels = self._device.floats(pixels)
        self.loss = self._step()
        for _ in range(WARM_UP - 1):
            self._step()

    def _step(self) -> float:
        self._device.begin_step()
        with self._device.autocast():
            loss = self._encoder(self._pixels).square().mean()
        loss.backward()
        self._encoder.zero_grad(set_to_none=True)
        return float(loss.detach())  # waits for the device

    def seconds(self) -> float:
        """Return the mean time of a step."""
        began, n = time.perf_counter(), 0
        while not n or time.perf_counter() - began < SECONDS:
            self._step()
            n += 1
        return (time.perf_counter() - began) / n
