"""A program that uses sslrun finds itself unchanged: only commands change their process.

This file is also that program: a process of its own, which prints what sslrun has changed of it.
"""

import ctypes
import json
import logging
import multiprocessing
import os
import platform
import random
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pytest
import sklearn.cluster
import torch
import torchvision  # noqa: F401  what sslrun stands on is imported first: what that changes is not sslrun's

if TYPE_CHECKING:  # run as a program, this file imports nothing of sslrun before `use_sslrun`
    from tests.helpers import Cli

GLIBC = platform.libc_ver()[0] == "glibc"
STEPS = ("import", "load", "predict", "predict with views", "embed", "embed of a stage", "load pretrained", "refused")


class MallInfo(ctypes.Structure):
    """What glibc's allocator says of itself; `hblks` are blocks that it took from the system one by one."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", *"123456"))


def gives_memory_back() -> bool | None:
    """Tell whether glibc takes large blocks from the system one by one, so that it gives them back when freed."""
    if not GLIBC:
        return None
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.mallinfo2.restype = ctypes.c_void_p, MallInfo
    before = libc.mallinfo2().hblks
    block = libc.malloc(ctypes.c_size_t(64 << 20))
    after = libc.mallinfo2().hblks
    libc.free(ctypes.c_void_p(block))
    return after > before


def logger(name: str | None) -> list[Any]:
    result = logging.getLogger(name)
    return [
        result.level,
        result.propagate,
        result.disabled,
        [*map(repr, result.handlers)],
        [*map(repr, result.filters)],
    ]


PROCESS: dict[str, Callable[[], Any]] = {
    "allocator": gives_memory_back,
    "threads": lambda: [torch.get_num_threads(), torch.get_num_interop_threads()],
    "cudnn": lambda: [torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic],
    "warnings": lambda: [*map(repr, warnings.filters)],
    "start method": lambda: multiprocessing.get_start_method(allow_none=True),
    "root logger": lambda: logger(None),
    "sslrun logger": lambda: logger("sslrun"),
    "logging": lambda: [logging.raiseExceptions, logging.root.manager.disable],
    "figures": lambda: repr(matplotlib.rcParams),
    "environment": lambda: dict(os.environ),
    "torch random state": lambda: torch.get_rng_state().tolist(),
    "numpy random state": lambda: [np.array(part).tolist() for part in np.random.get_state()],  # noqa: NPY002
    "python random state": lambda: repr(random.getstate()),
    "gradients": lambda: [torch.is_grad_enabled(), str(torch.get_default_dtype())],
    "path": lambda: [*sys.path],
    "folder": os.getcwd,
    "signals": lambda: [repr(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM)],
}


def use_sslrun(pretrained: str, images: list[str]) -> Iterator[str]:
    """Yield the names of `STEPS` as they are done."""
    import sslrun
    from sslrun.base.errors import UserError

    yield "import"
    model = sslrun.load()
    yield "load"
    assert len(model.predict(images)) == len(images)
    yield "predict"
    assert len(model.predict(images, views=3)) == len(images)
    yield "predict with views"
    assert len(model.embed(images)) == len(images)
    yield "embed"
    assert len(model.embed(images, stage=1)) == len(images)
    yield "embed of a stage"
    assert len(sslrun.load(pretrained, device="cpu").embed(images)) == len(images)
    yield "load pretrained"
    assert model.predict("missing.png")[0].error
    try:
        sslrun.load("nothing")
    except UserError:
        yield "refused"


def main() -> None:
    """Print, for each part of the process that was changed, the step after which it was another: a JSON object."""
    sklearn.cluster.KMeans(1).fit(np.zeros((2, 1)))
    torch.nn.Conv2d(1, 1, 1)(torch.zeros(1, 1, 1, 1)).sum().backward()
    before = {name: look() for name, look in PROCESS.items()}
    changed: dict[str, str] = {}
    done = []
    for step in use_sslrun(sys.argv[1], sys.argv[2:]):
        done.append(step)
        for name, look in PROCESS.items():
            if look() != before[name]:
                changed.setdefault(name, step)
    print(json.dumps({"done": done, "changed": changed}))


@pytest.fixture(scope="module")
def host(world: Path, photos: Path) -> dict[str, Any]:
    """What a program of its own says that was changed of it."""
    (pretrained, *_) = sorted((world / "outputs" / "pretrain").iterdir())
    images = [str(p) for p in sorted(photos.glob("*/*.jpg"))[:3]]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "SSLRUN_CACHE": str(world / "cache")}
    line = [sys.executable, __file__, str(pretrained), *images]
    ended = subprocess.run(line, cwd=world, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    result: dict[str, Any] = json.loads(ended.stdout)
    return result


@pytest.mark.slow
def test_a_host_gets_what_it_asks_for(host: dict[str, Any]) -> None:
    assert host["done"] == [*STEPS]


@pytest.mark.parametrize("part", PROCESS)
def test_a_host_is_left_as_it_was(host: dict[str, Any], part: str) -> None:
    assert part not in host["changed"], f"changed by: {host['changed'][part]}"


def test_a_command_claims_its_process_before_it_measures(cli: "Cli", monkeypatch: pytest.MonkeyPatch) -> None:
    from sslrun.device import Device
    from sslrun.training import autotune

    done: list[str] = []

    def measure(*_: Any) -> dict[str, float]:
        done.append("measured")
        return {}

    monkeypatch.setattr(Device, "claim", lambda self: done.append(f"{self.torch} {self.threads}"))
    monkeypatch.setattr(autotune, "measure", measure)
    settings = ("backbone.widths=[8,16]", "train.steps=1", "train.batch_size=8", "dataset.max_images=40")
    assert cli("pretrain", "dataset=digits", *settings, "device=cpu", "device.threads=1").code == 0
    assert done == ["cpu 1", "measured"]


if __name__ == "__main__":
    main()
