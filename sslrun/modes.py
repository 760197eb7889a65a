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

SECONDS = 4.0  # that measuring takes, about
PROBE = 2  # pictures of a first step, after which modes that are hopelessly slow are dropped
HOPELESS = 2.0  # times as slow as the best

Mode = tuple[Precision, MemoryFormat]


def choose(device: Device, encoder: Encoder, backbone: Node, image_size: int, batch_size: int) -> dict[str, Any]:
    """Set a device to the fastest of the modes that were left to it.

    Args:
        encoder: made from `backbone`; it is not changed.
        batch_size: of training; no more pictures than that are put through the network at once.

    Returns:
        `name`, `precision` and `memory_format`, as keys of the device's config.
    """
    modes = list(itertools.product(device.precisions, device.formats))
    if len(modes) > 1:
        rates = _remembered(device, encoder, backbone, image_size, batch_size, modes)
        device.use(*max(modes, key=lambda m: rates[" ".join(m)]))
        told = [f"{name} {rate:.0f}" for name, rate in sorted(rates.items(), key=lambda r: -r[1]) if rate]
        log.info("Images/s of the network alone: %s", ", ".join(told))
    return {"name": device.torch.type, "precision": device.precision, "memory_format": device.memory_format}


def measure(device: Device, encoder: Encoder, image_size: int, batch_size: int, modes: list[Mode]) -> dict[str, float]:
    """Time forward and backward passes in each mode, in turns; no random number is used up.

    Returns:
        Images/s by mode, such as `bf16 channels_last`; 0 where a mode was dropped as too slow.
    """
    began = time.perf_counter()
    encoders = {}
    for memory_format in dict.fromkeys(m[1] for m in modes):
        device.use(modes[0][0], memory_format)
        encoders[memory_format] = device.put(copy.deepcopy(encoder)).train()

    def seconds(mode: Mode, n: int) -> float:
        device.use(*mode)
        pixels = device.floats(torch.arange(n * 3 * image_size**2).view(n, 3, image_size, image_size) % 251)
        device.wait()
        start = time.perf_counter()
        with device.autocast():
            features = encoders[mode[1]](pixels)
        features.float().square().mean().backward()
        encoders[mode[1]].zero_grad(set_to_none=True)
        device.wait()
        return time.perf_counter() - start

    def rates(n: int, of: list[Mode], until: float) -> dict[Mode, float]:
        """Return images/s with n pictures; what is hopelessly slow in its first step is not tried again."""
        first = {}
        for mode in of:
            first[mode] = seconds(mode, n)  # which prepares, too
            if first[mode] > 1 + HOPELESS * min(first.values()):
                del first[mode]
        best = dict.fromkeys(first, float("inf"))
        rounds = 0
        while rounds < 1 or (rounds < 10 and time.perf_counter() - began < until):
            best = {mode: min(best[mode], seconds(mode, n)) for mode in best}
            rounds += 1
        return {mode: n / s for mode, s in best.items()}

    on_gpu = device.torch.type == "cuda"
    with torch.random.fork_rng([torch.cuda.current_device()] if on_gpu else []):
        found = rates(min(PROBE, batch_size), modes, SECONDS / 4)
        hopeful = [m for m in found if found[m] * HOPELESS > max(found.values())]
        left = SECONDS - (time.perf_counter() - began)
        fit = batch_size if on_gpu else int(max(found.values()) * left / (4 * len(hopeful)))  # 4 turns each
        if len(hopeful) > 1 and fit > PROBE:
            found = rates(min(fit, batch_size, 256), hopeful, SECONDS)
    if on_gpu:
        torch.cuda.empty_cache()
    return {" ".join(m): round(found.get(m, 0.0), 1) for m in modes}


def _remembered(
    device: Device, encoder: Encoder, backbone: Node, image_size: int, batch_size: int, modes: list[Mode]
) -> dict[str, float]:
    """Return the rates of `measure` from the cache, or measure and put them there."""
    machine = [device.describe(), processor(), torch.__version__, os.environ.get("OMP_NUM_THREADS")]
    names = [" ".join(m) for m in modes]
    of = [backbone, image_size, *machine, names]
    key = f"{backbone['_target_']} {image_size} {hashlib.sha256(json.dumps(of).encode()).hexdigest()[:16]}"
    path = home() / "modes.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with alone(path.with_suffix(".lock"), "measuring the fastest precision"):
            found = _read(path).get(key)
            if found is None or sorted(found) != sorted(names):
                found = measure(device, encoder, image_size, batch_size, modes)
                _write(path, {**_read(path), key: found})
            return found
    except OSError as error:  # of the folder or the lock
        log.warning("%s: %s; the fastest precision is measured in every run", path, error.strerror)
        return measure(device, encoder, image_size, batch_size, modes)


def _write(path: Path, known: dict[str, dict[str, float]]) -> None:
    part = path.with_suffix(".part")
    try:
        part.write_text(json.dumps(known, indent=2) + "\n")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        log.warning("%s: %s; the fastest precision is measured again in the next run", path, error.strerror)


def _read(path: Path) -> dict[str, dict[str, float]]:
    """Return what is remembered; what is damaged counts as nothing."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, IsADirectoryError, ValueError):
        return {}
    entries = content.items() if isinstance(content, dict) else ()
    return {k: v for k, v in entries if isinstance(v, dict) and all(isinstance(r, int | float) for r in v.values())}


def processor() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
