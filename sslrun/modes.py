"""Which precision and memory format a network trains fastest in, on this machine: measured once, then remembered.

    $SSLRUN_CACHE/modes.json    network, image size, machine, versions -> images/s of each mode

It is remembered so that the same command gives the same numbers again.
"""

import copy
import hashlib
import itertools
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

from sslrun.backbones import Encoder
from sslrun.config import Node
from sslrun.console import log
from sslrun.data.lock import alone, home
from sslrun.device import Device, MemoryFormat, Precision

SECONDS = 3.5  # that measuring takes, about
PROBE = 2  # pictures of a first step, after which modes that are hopelessly slow are dropped
HOPELESS = 2.0  # times as slow as the best

Mode = tuple[Precision, MemoryFormat]


def choose(device: Device, encoder: Encoder, backbone: Node, image_size: int) -> dict[str, Any]:
    """Set a device to the fastest of the modes that were left to it.

    Args:
        encoder: made from `backbone`; it is not changed.

    Returns:
        `precision` and `memory_format`, as keys of the device's config.
    """
    modes = list(itertools.product(device.precisions, device.formats))
    if len(modes) > 1:
        rates = _remembered(device, encoder, backbone, image_size, modes)
        best = max(modes, key=lambda m: rates[" ".join(m)])
        device.use(*best)
        told = ", ".join(f"{name} {rate:.0f}" for name, rate in sorted(rates.items(), key=lambda r: -r[1]))
        log.info("Images/s of the network alone: %s", told)
    return {"precision": device.precision, "memory_format": device.memory_format}


def measure(device: Device, encoder: Encoder, image_size: int, modes: list[Mode]) -> dict[str, float]:
    """Time forward and backward passes in each mode, in turns.

    Returns:
        Images/s by mode, such as `bf16 channels_last`; 0 where a mode was dropped.
    """
    began = time.perf_counter()
    encoders = {}
    for memory_format in dict.fromkeys(m[1] for m in modes):
        device.use(modes[0][0], memory_format)
        encoders[memory_format] = device.put(copy.deepcopy(encoder)).train()

    def seconds(mode: Mode, n: int) -> float:
        device.use(*mode)
        pixels = device.floats(torch.arange(n * 3 * image_size**2).view(n, 3, image_size, image_size) % 251)
        start = time.perf_counter()
        with device.autocast():
            features = encoders[mode[1]](pixels)
        features.float().square().mean().backward()
        encoders[mode[1]].zero_grad(set_to_none=True)
        device.wait()
        return time.perf_counter() - start

    def rates(n: int, of: list[Mode], until: float) -> dict[Mode, float]:
        for mode in of:
            seconds(mode, n)  # the first step of its kind prepares
        found = {mode: float("inf") for mode in of}
        rounds = 0
        while rounds < 1 or (rounds < 10 and time.perf_counter() - began < until):
            found = {mode: min(found[mode], seconds(mode, n)) for mode in of}
            rounds += 1
        return {mode: n / s for mode, s in found.items()}

    found = rates(PROBE, modes, SECONDS / 4)
    hopeful = [m for m in modes if found[m] * HOPELESS > max(found.values())]
    n = int(max(found.values()) * SECONDS / 20)  # so that every mode gets several turns
    if len(hopeful) > 1 and n > PROBE:
        found = rates(min(n, 256), hopeful, SECONDS)
    return {" ".join(m): round(found.get(m, 0.0), 1) for m in modes}


def _remembered(
    device: Device, encoder: Encoder, backbone: Node, image_size: int, modes: list[Mode]
) -> dict[str, float]:
    """Return the rates of `measure` from the cache, or measure and put them there."""
    machine = [device.describe(), processor(), torch.__version__, os.environ.get("OMP_NUM_THREADS")]
    of = [backbone, image_size, *machine, [" ".join(m) for m in modes]]
    key = f"{backbone['_target_']} {image_size} {hashlib.sha256(json.dumps(of).encode()).hexdigest()[:16]}"
    path = home() / "modes.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with alone(path.with_suffix(".lock"), "measuring the fastest precision"):
            known = _read(path)
            if key not in known:
                with torch.random.fork_rng(range(torch.cuda.device_count())):  # a backbone of yours may have dropout
                    known[key] = measure(device, encoder, image_size, modes)
                part = path.with_suffix(".part")
                part.write_text(json.dumps(known, indent=2) + "\n")
                os.replace(part, path)
            return known[key]
    except OSError as error:
        log.warning("%s: %s; the fastest precision is measured anew in every run", path, error.strerror)
        return measure(device, encoder, image_size, modes)


def _read(path: Path) -> dict[str, dict[str, float]]:
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):  # a damaged file is made anew
        return {}
    return found if isinstance(found, dict) else {}


def processor() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
