"""Properties of this machine: processor, cores, memory."""

import os
import platform
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal


def processor() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def cpu_flags() -> frozenset[str]:
    """Return the CPU flags that Linux reports, such as `avx512bw`; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = (line.split(":", 1)[1].split() for line in lines if line.startswith(("flags", "Features")))  # x86, ARM
    return frozenset(next(flags, []))


def physical_memory() -> int:
    """Return the machine's memory in bytes, or 0 if it is unknown."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0


def one_thread(library: Literal["blas", "openmp"]) -> AbstractContextManager[Any]:
    """Return a context that limits BLAS or OpenMP to one thread, to avoid contention with torch's threads."""
    from threadpoolctl import threadpool_limits

    context: AbstractContextManager[Any] = threadpool_limits(1, library)
    return context


def cores() -> int:
    """Return the number of cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def started_processes() -> int:
    """Return the number of processes that torchrun started together with this one, which is one of them."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def is_first() -> bool:
    """Return whether this is the only process, or the first of several: it alone writes, prints and decides."""
    return started_processes() == 1 or os.environ["RANK"] == "0"
