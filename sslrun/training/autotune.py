"""Autotuning: measure in which precision and memory format a network trains fastest on this machine.

    $SSLRUN_CACHE/autotune.json    network, image size, machine, versions -> images/s of each candidate

Results are cached, so that repeating a command gives the same numbers.
"""

import hashlib
import itertools
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from sslrun.base.cached import Cached
from sslrun.base.console import log
from sslrun.base.files import replacing
from sslrun.base.machine import processor
from sslrun.base.paths import home
from sslrun.base.processes import by_first
from sslrun.config.types import Node
from sslrun.device import Device, MemoryFormat, Precision
from sslrun.models.encoder import build_encoder

SECONDS = 3.5  # time budget, approximately
FIRST_BATCH = 2  # images in a first step, after which very slow candidates are dropped
TOO_SLOW = 2.0  # multiple of the fastest candidate's time
MAX_NOISE = 1.3  # ratio of the median to the shortest time
EQUAL = 0.98  # fraction of the highest rate that counts as equal, so that the choice depends less on noise
Candidate = tuple[Precision, MemoryFormat]
Rates = dict[str, dict[str, float]]  # images/s by candidate, for each network


def choose(device: Device, backbone: Node, image_size: int, batch_size: int, frozen: bool = False) -> dict[str, Any]:
    """Set a device to the fastest of its candidates; of equally fast ones, to the first.

    Args:
        backbone: node of the network to measure.
        batch_size: batch size of training, the largest that is measured.
        frozen: the network is not trained, so nothing is measured, and the native precision is used.

    Returns:
        `name`, `precision` and `memory_format`, as keys of the device's config.
    """
    candidates = list(itertools.product(device.precisions, device.formats))
    default = device.precision, device.memory_format
    if frozen:
        device.use_native()
    elif len(candidates) > 1:
        names = [" ".join(m) for m in candidates]
        about = [backbone, image_size, batch_size]
        rates = cached_rates(
            device, about, names, lambda: measure(device, backbone, image_size, batch_size, candidates)
        )
        best = max(rates.values(), default=0.0)
        device.use(*(next(m for m in candidates if rates[" ".join(m)] >= EQUAL * best) if best else default))
        texts = [f"{name} {rate:.0f}" for name, rate in sorted(rates.items(), key=lambda r: -r[1]) if rate]
        if not rates:
            log.warning("Autotuning: the times vary too much (is the machine busy?); using %s", " ".join(default))
        elif texts:
            log.info("Autotuning (images/s, forward and backward pass): %s", ", ".join(texts))
    return {"name": device.torch.type, "precision": device.precision, "memory_format": device.memory_format}


def measure(
    device: Device, backbone: Node, image_size: int, batch_size: int, candidates: list[Candidate]
) -> dict[str, float]:
    """Time forward and backward passes of the candidates alternately. The random state is restored afterwards.

    Returns:
        Images/s by candidate, such as `bf16 channels_last`; 0 for a candidate that failed or was too slow. Empty if
        the times of the best candidate vary too much, because the machine is busy.
    """
    began = time.perf_counter()

    # torch.utils.benchmark.Timer is not used: it warms up before each timing (4.0 s instead of 3.7 s for smallcnn,
    # 3.3 to 4.9 s instead of 1.9 to 3.3 s for ResNet-18 at 64 px, with the same ranking), and importing it makes
    # torch warn about compilers.
    def seconds(candidate: Candidate, n: int) -> float:
        device.use(*candidate)
        encoder = device.put(encoders[candidate[1]]).train()
        pixels = device.floats(torch.arange(n * 3 * image_size**2).view(n, 3, image_size, image_size) % 251)
        device.wait()
        start = time.perf_counter()
        with device.autocast():
            features = encoder(pixels)
        if features.requires_grad:
            features.square().mean().backward()
        encoder.zero_grad(set_to_none=True)
        device.wait()
        return time.perf_counter() - start

    def rounds(n: int, tried: list[Candidate], at_least: int, until: float) -> dict[Candidate, list[float]]:
        """Return the seconds that n images took; candidates that are too slow in the first step are dropped."""
        first: dict[Candidate, float] = {}
        for candidate in tried:
            try:
                first[candidate] = seconds(candidate, n)  # warm-up
            except Exception as error:  # a backbone may raise anything; if it matters, training raises it again
                log.info("%s cannot be used with this backbone: %s", " ".join(candidate), str(error).split("\n")[0])
                continue
            if first[candidate] > 1 + TOO_SLOW * min(first.values()):
                del first[candidate]
        timings: dict[Candidate, list[float]] = {candidate: [] for candidate in first}
        for i in range(10):
            if i < at_least or time.perf_counter() - began < until:
                for candidate, times in timings.items():
                    times.append(seconds(candidate, n))
        return timings

    on_gpu = device.torch.type == "cuda"
    steady = True
    with torch.random.fork_rng([torch.cuda.current_device()] if on_gpu else []):
        mean, std = [0.5] * 3, [0.25] * 3
        encoders = {f: build_encoder(backbone, image_size, mean, std) for f in dict.fromkeys(m[1] for m in candidates)}
        n = min(FIRST_BATCH, batch_size)
        timings = rounds(n, candidates, 2, SECONDS / 4)
        if timings:
            best = min(min(t) for t in timings.values())
            promising = [m for m, t in timings.items() if min(t) < TOO_SLOW * best]
            remaining = SECONDS - (time.perf_counter() - began)
            affordable = int(n / best * remaining / (4.5 * len(promising)))  # for a warm-up and three rounds each
            larger = min(batch_size if on_gpu else affordable, batch_size, 256)
            if larger > n:  # otherwise the network is so slow that a small batch is representative
                n = larger
                timings = rounds(n, promising, 3, SECONDS)
            if timings:  # the larger batch may fail, for example if memory is full
                times = min(timings.values(), key=min)
                steady = statistics.median(times) < MAX_NOISE * min(times)
    if on_gpu:
        torch.cuda.empty_cache()
    return {" ".join(m): round(n / min(timings[m]), 1) if m in timings else 0.0 for m in candidates} if steady else {}


@by_first
def cached_rates(
    device: Device,
    about: Sequence[Any],
    names: list[str],
    measured: Callable[[], dict[str, float]],
    file: str = "autotune.json",
) -> dict[str, float]:
    """Return the rates of candidates from the cache, or measure and cache them.

    Args:
        about: what the rates depend on, in addition to the machine: first the node of the network, then its image size.
        names: of the candidates.
        measured: returns their rates; none if the measurement is of no use. Without one of them, all are measured again
            next time.
        file: of the cache.
    """
    machine = [device.describe(), processor(), torch.__version__, os.environ.get("OMP_NUM_THREADS")]
    if device.torch.type == "cuda":
        machine += ["without TF32", str(device.deterministic)]
    parts = [*about, *machine, names]
    key = f"{about[0]['_target_']} {about[1]} {hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]}"
    cached = Cached(home() / file, "measuring what is fastest", _load)
    try:
        with cached.alone():
            known = cached.read() or {}
            timings = known.get(key)
            if timings is None or sorted(timings) != sorted(names):
                timings = measured()
                if timings:
                    _write(cached.path, known | {key: timings})
            return timings
    except OSError as error:  # the folder or the lock file cannot be created
        log.warning("Cannot cache the result of autotuning in %s: %s", cached.path, error.strerror)
        return measured()


def _write(path: Path, known: Rates) -> None:
    try:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(known, indent=2) + "\n")
    except OSError as error:
        log.warning("Cannot cache the result of autotuning in %s: %s", path, error.strerror)


def _load(path: Path) -> Rates:
    """Return the cached rates without invalid entries."""
    content = json.loads(path.read_text())
    entries = content.items() if isinstance(content, dict) else ()
    return {k: v for k, v in entries if isinstance(v, dict) and all(_is_rate(r) for r in v.values())}


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value < math.inf
