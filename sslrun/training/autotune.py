"""Which precision and memory format a network trains fastest in, on this machine: measured once, then remembered.

    $SSLRUN_CACHE/autotune.json    network, image size, machine, versions -> images/s of each mode

It is remembered so that the same command gives the same numbers again.
"""

import hashlib
import itertools
import json
import math
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from sslrun.base.cached import Cached
from sslrun.base.console import log
from sslrun.base.files import replacing
from sslrun.base.machine import processor
from sslrun.base.paths import home
from sslrun.config.types import Node
from sslrun.device import Device, MemoryFormat, Precision
from sslrun.models.encoder import build_encoder

SECONDS = 3.5  # that measuring takes, about
FIRST_BATCH = 2  # pictures of a first step, after which modes that are hopelessly slow are dropped
HOPELESS = 2.0  # times as slow as the best
AGREEING = 1.3  # median over fastest turn
EQUAL = 0.98  # of the best; so that chance decides less often
Candidate = tuple[Precision, MemoryFormat]
Rates = dict[str, dict[str, float]]  # images/s by mode, of each network


def choose(device: Device, backbone: Node, image_size: int, batch_size: int) -> dict[str, Any]:
    """Set a device to the fastest of the modes that were left to it; among equals to the first, fp32 before others.

    Args:
        backbone: of which a network is built to be measured.
        batch_size: of training; no more pictures than that are put through the network at once.

    Returns:
        `name`, `precision` and `memory_format`, as keys of the device's config.
    """
    candidates = list(itertools.product(device.precisions, device.formats))
    default = device.precision, device.memory_format
    if len(candidates) > 1:
        rates = _remembered(device, backbone, image_size, batch_size, candidates)
        best = max(rates.values(), default=0.0)
        device.use(*(next(m for m in candidates if rates[" ".join(m)] >= EQUAL * best) if best else default))
        texts = [f"{name} {rate:.0f}" for name, rate in sorted(rates.items(), key=lambda r: -r[1]) if rate]
        log.info("Images/s of the network alone: %s", ", ".join(texts) or "not known")
    return {"name": device.torch.type, "precision": device.precision, "memory_format": device.memory_format}


def measure(
    device: Device, backbone: Node, image_size: int, batch_size: int, candidates: list[Candidate]
) -> dict[str, float]:
    """Time forward and backward passes in each mode, in turns; no random number is used up.

    Returns:
        Images/s by mode, such as `bf16 channels_last`; 0 where a mode was dropped, as too slow or because it failed.
        Empty if the turns of the best do not agree, since then something else keeps the machine busy.
    """
    began = time.perf_counter()

    # Not by torch.utils.benchmark.Timer: it repeats steps to warm up before each turn (4.0 s in place of 3.7 s for
    # smallcnn, 3.3 to 4.9 s in place of 1.9 to 3.3 s for ResNet-18 at 64 px, the same ranking), and torch warns of
    # compilers when it is imported.
    def seconds(candidate: Candidate, n: int) -> float:
        device.use(*candidate)
        encoder = device.put(encoders[candidate[1]]).train()
        pixels = device.floats(torch.arange(n * 3 * image_size**2).view(n, 3, image_size, image_size) % 251)
        device.wait()
        start = time.perf_counter()
        with device.autocast():
            features = encoder(pixels)
        if features.requires_grad:
            features.float().square().mean().backward()
        encoder.zero_grad(set_to_none=True)
        device.wait()
        return time.perf_counter() - start

    def rounds(n: int, of: list[Candidate], least: int, until: float) -> dict[Candidate, list[float]]:
        """Return the seconds that n pictures took; what is hopelessly slow in its first step is not tried again."""
        first: dict[Candidate, float] = {}
        for candidate in of:
            try:
                first[candidate] = seconds(candidate, n)  # which prepares, too
            except Exception as error:  # of any kind: it is the backbone's, and training will tell if it matters
                log.info("%s cannot be used with this backbone: %s", " ".join(candidate), str(error).split("\n")[0])
                continue
            if first[candidate] > 1 + HOPELESS * min(first.values()):
                del first[candidate]
        timings: dict[Candidate, list[float]] = {candidate: [] for candidate in first}
        for i in range(10):
            if i < least or time.perf_counter() - began < until:
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
            promising = [m for m, t in timings.items() if min(t) < HOPELESS * best]
            left = SECONDS - (time.perf_counter() - began)
            fit = int(n / best * left / (4.5 * len(promising)))  # for a first step and three turns each
            more = min(batch_size if on_gpu else fit, batch_size, 256)
            if more > n:  # else the network is so slow that a few pictures tell
                n = more
                timings = rounds(n, promising, 3, SECONDS)
            if timings:  # more pictures may fail where few did not, as when the memory is full
                times = min(timings.values(), key=min)
                steady = statistics.median(times) < AGREEING * min(times)
    if on_gpu:
        torch.cuda.empty_cache()
    return {" ".join(m): round(n / min(timings[m]), 1) if m in timings else 0.0 for m in candidates} if steady else {}


def _remembered(
    device: Device, backbone: Node, image_size: int, batch_size: int, candidates: list[Candidate]
) -> dict[str, float]:
    """Return the rates of `measure` from the cache, or measure and put them there."""
    machine = [device.describe(), processor(), torch.__version__, os.environ.get("OMP_NUM_THREADS")]
    names = [" ".join(m) for m in candidates]
    of = [backbone, image_size, batch_size, *machine, names]
    key = f"{backbone['_target_']} {image_size} {hashlib.sha256(json.dumps(of).encode()).hexdigest()[:16]}"
    cached = Cached(home() / "autotune.json", "measuring the fastest precision", _load)
    try:
        with cached.alone():
            known = cached.read() or {}
            timings = known.get(key)
            if timings is None or sorted(timings) != sorted(names):
                timings = measure(device, backbone, image_size, batch_size, candidates)
                if timings:
                    _write(cached.path, known | {key: timings})
                else:
                    log.warning("The machine is too busy to measure the fastest precision: the usual one is used.")
            return timings
    except OSError as error:  # of the folder or the lock
        log.warning("%s: %s; the fastest precision is measured in every run", cached.path, error.strerror)
        return measure(device, backbone, image_size, batch_size, candidates)


def _write(path: Path, known: Rates) -> None:
    try:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(known, indent=2) + "\n")
    except OSError as error:
        log.warning("%s: %s; the fastest precision is measured again in the next run", path, error.strerror)


def _load(path: Path) -> Rates:
    """Return what is remembered, without entries that are no rates."""
    content = json.loads(path.read_text())
    entries = content.items() if isinstance(content, dict) else ()
    return {k: v for k, v in entries if isinstance(v, dict) and all(_is_rate(r) for r in v.values())}


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value < math.inf
