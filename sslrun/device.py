"""The device, its precision and its memory format."""

import ctypes
import functools
import os
import platform
import shutil
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.base.machine import cpu_flags, started_processes
from sslrun.config.build import build
from sslrun.config.types import Node, PositiveInt

Precision = Literal["fp32", "bf16", "fp16"]
MemoryFormat = Literal["contiguous", "channels_last"]
Compilation = Literal["default", "reduce-overhead", "max-autotune"] | None
TRIM_THRESHOLD, MMAP_MAX = -1, -4  # glibc's malloc.h


class Device:
    """A device, its precision and its memory format.

    Args:
        name: `auto` uses a CUDA GPU if there is one, else the CPU.
        precision: of convolutions and matrix products; weights and loss stay in fp32. For training, `auto` is the
            fastest for this network on this machine, as measured by autotuning. Otherwise it is bf16 if the hardware
            supports it natively (GPUs since Ampere, CPUs with AVX512-BF16 or AMX), else fp16 on a GPU and fp32 on a
            CPU.
        memory_format: of images and feature maps; `auto` is the fastest, measured together with the precision.
        compile: mode of `torch.compile` for training steps; null runs them eagerly. `auto` is the fastest for a long
            pretraining, as measured by `sslrun.training.compilation`, and null for everything else.
        deterministic: use algorithms on a GPU that give the same bits again, and warn where torch has none. They are
            slower. A CPU gives the same bits with the same number of threads.
        threads: number of CPU threads; null keeps torch's choice.

    Raises:
        UserError: the device, the precision or the compiler is not available.
    """

    def __init__(
        self,
        *,
        name: Literal["auto", "cpu", "cuda", "mps"],
        precision: Literal["auto", "fp32", "bf16", "fp16"],
        memory_format: Literal["auto", "contiguous", "channels_last"],
        compile: Literal["auto", "default", "reduce-overhead", "max-autotune"] | None,
        deterministic: bool,
        threads: PositiveInt | None,
    ) -> None:
        name = kind(name)
        if name == "cuda" and not torch.cuda.is_available():
            raise UserError("device=cuda: torch found no CUDA GPU; use device=cpu or device=auto")
        if name == "mps" and not torch.backends.mps.is_available():
            raise UserError("device=mps: torch found no Apple GPU; use device=cpu or device=auto")
        if precision == "fp16" and name == "cpu":
            raise UserError("device.precision=fp16 needs a GPU; on a CPU use bf16 or fp32")
        compilers = (os.environ.get("CXX", "g++"), "clang++", "cl")
        if compile not in (None, "auto") and not any(shutil.which(c) for c in compilers):
            raise UserError(
                f"device.compile={compile} needs a C++ compiler, such as g++; install one, or use device.compile=null"
            )
        several = name == "cuda" and started_processes() > 1  # each with a GPU of its own
        gpu = int(os.environ.get("LOCAL_RANK", "0"))
        if several and gpu >= torch.cuda.device_count():
            raise UserError(
                f"device=cuda: there are {torch.cuda.device_count()} GPUs for more processes; start one for each, or "
                "use device=cpu"
            )
        if several and not torch.distributed.is_nccl_available():
            raise UserError("device=cuda: several processes need NCCL, which this build of torch lacks; use device=cpu")
        self.torch = torch.device(name, gpu) if several else torch.device(name)
        self.deterministic, self.threads = deterministic, threads
        graphs: list[Compilation] = ["reduce-overhead"] if name == "cuda" else []  # CUDA graphs
        self.compilations: list[Compilation] = [None, "default", *graphs] if compile == "auto" else [compile]
        self.compiled = self.compilations[0]
        native = native_precision(name)
        half: list[Precision] = ["bf16"] if _has_bf16() else []
        every: dict[str, list[Precision]] = {"cpu": ["fp32", *half], "cuda": [native, "fp32"], "mps": ["fp32"]}
        self.precisions: list[Precision] = [precision] if precision != "auto" else every[name]
        self.formats: list[MemoryFormat] = (
            [memory_format] if memory_format != "auto" else ["channels_last", "contiguous"]
        )
        self.use(native if precision == "auto" else precision, self.formats[0])

    def claim(self) -> None:
        """Configure this process: number of threads, reuse of freed memory, deterministic algorithms, which GPU.

        Only commands call this. `sslrun.load()` leaves the settings of its host process unchanged.
        """
        if self.threads:
            torch.set_num_threads(self.threads)
        if self.torch.index is not None:
            torch.cuda.set_device(self.torch)
        if self.torch.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False  # else fp32 convolutions would have 10 bits
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it once, when it starts
            if self.deterministic or torch.are_deterministic_algorithms_enabled():
                torch.use_deterministic_algorithms(self.deterministic, warn_only=True)
        if self.torch.type == "cpu":
            _keep_freed_memory()
            if self.precisions == ["bf16"] and cpu_flags() and not _has_bf16():
                warn_of_emulation()

    def use(self, precision: Precision, memory_format: MemoryFormat) -> None:
        """Set precision and memory format; modules and images placed before must be placed again."""
        self.precision, self.memory_format = precision, memory_format
        self.scaler = torch.amp.GradScaler(self.torch.type, enabled=precision == "fp16")

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context in which the forward pass runs."""
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.torch.type, dtype, enabled=self.precision != "fp32")

    def put(self, module: nn.Module) -> nn.Module:
        """Move a module to the device, in the memory format."""
        for submodule in module.modules():
            if hasattr(submodule, "memory_format"):  # an encoder, which converts its images to it
                submodule.memory_format = self.format  # type: ignore[assignment]
        return module.to(self.torch, memory_format=self.format)  # type: ignore[call-overload]

    def use_native(self) -> None:
        """Set the native precision, if the config allows it, and channels last: the fastest without gradients."""
        native = native_precision(self.torch.type)
        self.use(native if native in self.precisions else self.precisions[0], self.formats[0])

    def compile(self, encoder: nn.Module) -> None:
        """Compile an encoder's backbone if `compiled` is set, for training; the state dict does not change."""
        if self.compiled:
            encoder.backbone.compile(mode=self.compiled)  # type: ignore[union-attr]

    def begin_step(self) -> None:
        """Tell CUDA graphs that the outputs of the step before are not used any more, but for copies."""
        if self.compiled in ("reduce-overhead", "max-autotune"):
            torch.compiler.cudagraph_mark_step_begin()

    def eager(self) -> AbstractContextManager[None]:
        """Return a context without compilation, for batches of varying size."""
        return torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()

    def floats(self, images: Tensor) -> Tensor:
        """Convert uint8 images to floats in [0, 1] on the device, in its memory format."""
        x = images.to(self.torch, non_blocking=True).float().div_(255)
        return x.contiguous(memory_format=self.format)

    def wait(self) -> None:
        """Wait until all kernels on the device have finished."""
        if self.torch.type == "cuda":
            torch.cuda.synchronize()
        elif self.torch.type == "mps":
            torch.mps.synchronize()

    def describe(self) -> str:
        """Return a readable name of the device."""
        if self.torch.type == "cuda":
            return torch.cuda.get_device_name()
        return f"{self.torch.type} ({torch.get_num_threads()} threads)" if self.torch.type == "cpu" else "mps"

    @property
    def format(self) -> torch.memory_format:
        """Return the memory format as torch's constant."""
        return torch.channels_last if self.memory_format == "channels_last" else torch.contiguous_format


def in_float32(module: nn.Module, x: Tensor) -> Tensor:
    """Apply a head to features in float32, outside autocast: its work is small, and bf16 would leave 8 bits."""
    with torch.autocast(x.device.type, enabled=False):
        return module(x.float())


def kind(name: Literal["auto", "cpu", "cuda", "mps"]) -> Literal["cpu", "cuda", "mps"]:
    """Resolve `auto`; return other names unchanged."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def inference_device(node: Node, was: Node) -> Device:
    """Build a device for inference with a trained network, which keeps fp32 and the memory format of its training.

    Args:
        node: the device of this command's config.
        was: the device of the run that trained the network.
    """
    device: Device = build(node)
    memory_format = device.formats[0] if len(device.formats) == 1 else was.get("memory_format", device.formats[0])
    fp32 = node["precision"] == "auto" and was["precision"] == "fp32"
    device.use("fp32" if fp32 else device.precision, memory_format)
    return device


def native_precision(name: str) -> Precision:
    """Return the fastest precision that a device supports natively."""
    if name == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if name == "cpu" and cpu_flags() & {"avx512_bf16", "amx_tile"} else "fp32"


def _has_bf16() -> bool:
    """Return whether oneDNN supports bf16 on this CPU: AVX512 (by conversion if necessary) or ARM's bf16 instructions.

    `torch.cpu.get_capabilities` exists only since torch 2.10, so the CPU's flags are read from the system. Where there
    are none to read (outside Linux), this returns False, and `auto` is fp32.
    """
    flags = cpu_flags()
    return torch.backends.mkldnn.is_available() and ({"avx512bw", "avx512dq", "avx512vl"} <= flags or "bf16" in flags)


@functools.cache
def warn_of_emulation() -> None:
    """Warn once in a process, of all runs of a study, that bf16 is slow here."""
    log.warning("device.precision=bf16 is emulated on this CPU, many times slower than device.precision=fp32")


def _keep_freed_memory() -> None:
    """Make glibc keep freed memory, since every training step needs the same amount again.

    By default glibc returns large arrays to the system and gets zeroed pages back, which takes a third of the time
    with `smallcnn`. Other C libraries are not changed.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_MAX, 0)
        libc.mallopt(TRIM_THRESHOLD, -1)
