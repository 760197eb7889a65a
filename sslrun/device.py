"""Where and in which precision the arithmetic is done."""

import ctypes
import os
import platform
import shutil
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from sslrun.base.errors import UserError
from sslrun.base.machine import cpu_flags
from sslrun.config.build import build
from sslrun.config.types import Node, PositiveInt

Precision = Literal["fp32", "bf16", "fp16"]
MemoryFormat = Literal["contiguous", "channels_last"]
TRIM_THRESHOLD, MMAP_MAX = -1, -4  # glibc's malloc.h


class Device:
    """A device, its precision and its memory format.

    Args:
        name: `auto` is a CUDA GPU if there is one, else the CPU.
        precision: of convolutions and matrix products; weights and loss stay in fp32. `auto` is the fastest for the
            network on this machine, which autotuning measures; before that, and where nothing is trained, bf16 if
            the hardware multiplies it natively (a GPU since Ampere, a CPU with AVX512-BF16 or AMX), else fp16 on a GPU
            and fp32 on a CPU.
        memory_format: how pictures and feature maps lie in memory; `auto` is the fastest, too.
        compile: the mode of `torch.compile`, in which training steps run; null compiles nothing.
        threads: CPU threads, null leaves torch's choice.

    Raises:
        UserError: no such device here.
    """

    def __init__(
        self,
        *,
        name: Literal["auto", "cpu", "cuda", "mps"],
        precision: Literal["auto", "fp32", "bf16", "fp16"],
        memory_format: Literal["auto", "contiguous", "channels_last"],
        compile: Literal["default", "reduce-overhead", "max-autotune"] | None,
        threads: PositiveInt | None,
    ) -> None:
        name = kind(name)
        if name == "cuda" and not torch.cuda.is_available():
            raise UserError("device=cuda: torch sees no CUDA GPU here; say device=cpu or device=auto")
        if name == "mps" and not torch.backends.mps.is_available():
            raise UserError("device=mps: torch sees no Apple GPU here; say device=cpu or device=auto")
        if precision == "fp16" and name == "cpu":
            raise UserError("device.precision=fp16 needs a GPU; on a CPU say bf16 or fp32")
        if compile and not any(shutil.which(c) for c in (os.environ.get("CXX", "g++"), "clang++", "cl")):
            raise UserError(f"device.compile={compile} needs a C++ compiler, such as g++; install one, or say null")
        self.torch, self.compiled, self.threads = torch.device(name), compile, threads
        native = native_precision(name)
        half: list[Precision] = ["bf16"] if _has_bf16() else []
        every: dict[str, list[Precision]] = {"cpu": ["fp32", *half], "cuda": [native, "fp32"], "mps": ["fp32"]}
        self.precisions: list[Precision] = [precision] if precision != "auto" else every[name]
        self.formats: list[MemoryFormat] = (
            [memory_format] if memory_format != "auto" else ["channels_last", "contiguous"]
        )
        self.use(native if precision == "auto" else precision, self.formats[0])

    def claim(self) -> None:
        """Set this process up to compute fast on the device: threads, freed memory, cuDNN's search for algorithms.

        A process belongs to its program: commands claim it, and whoever only loads a network leaves it as it is.
        """
        if self.threads:
            torch.set_num_threads(self.threads)
        if self.torch.type == "cpu":
            _keep_freed_memory()
        if self.torch.type == "cuda":
            torch.backends.cudnn.benchmark = True

    def use(self, precision: Precision, memory_format: MemoryFormat) -> None:
        """Set the mode; what was put on the device before must be put there anew."""
        self.precision, self.memory_format = precision, memory_format
        self.scaler = torch.amp.GradScaler(self.torch.type, enabled=precision == "fp16")

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context in which the forward pass runs."""
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.torch.type, dtype, enabled=self.precision != "fp32")

    def put(self, module: nn.Module) -> nn.Module:
        """Move a module to the device, in the memory format."""
        for submodule in module.modules():
            if hasattr(submodule, "memory_format"):  # an encoder, which brings its images to it
                submodule.memory_format = self.format  # type: ignore[assignment]
        return module.to(self.torch, memory_format=self.format)  # type: ignore[call-overload]

    def compile(self, encoder: nn.Module) -> None:
        """Compile what an encoder does while it trains, if asked for; its state dict stays as it is."""
        if self.compiled:
            encoder.compile(mode=self.compiled)

    def eager(self) -> AbstractContextManager[None]:
        """Return a context in which nothing is compiled, for batches of many sizes."""
        return torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()

    def floats(self, images: Tensor) -> Tensor:
        """Turn uint8 pictures into floats in [0, 1] on the device, in the memory format."""
        x = images.to(self.torch, non_blocking=True).float().div_(255)
        return x.contiguous(memory_format=self.format)

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        if self.torch.type == "cuda":
            torch.cuda.synchronize()
        elif self.torch.type == "mps":
            torch.mps.synchronize()

    def describe(self) -> str:
        """Return the device's name for people."""
        if self.torch.type == "cuda":
            return torch.cuda.get_device_name()
        return f"{self.torch.type} ({torch.get_num_threads()} threads)" if self.torch.type == "cpu" else "mps"

    @property
    def format(self) -> torch.memory_format:
        """Return the memory format as torch names it."""
        return torch.channels_last if self.memory_format == "channels_last" else torch.contiguous_format


def kind(name: Literal["auto", "cpu", "cuda", "mps"]) -> Literal["cpu", "cuda", "mps"]:
    """Return which device `auto` is here; other names as they are."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def inference_device(node: Node, was: Node) -> Device:
    """Build a device that computes with a network as it was trained: fp32 stays fp32, the memory format stays.

    Args:
        node: that was asked for.
        was: of the run that trained the network.
    """
    device: Device = build(node)
    memory_format = device.formats[0] if len(device.formats) == 1 else was.get("memory_format", device.formats[0])
    fp32 = node["precision"] == "auto" and was["precision"] == "fp32"
    device.use("fp32" if fp32 else device.precision, memory_format)
    return device


def native_precision(name: str) -> Precision:
    """Return the precision that a device multiplies fastest, as far as its instructions tell."""
    if name == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if name == "cpu" and cpu_flags() & {"avx512_bf16", "amx_tile"} else "fp32"


def _has_bf16() -> bool:
    """Tell whether oneDNN computes in bf16 on this CPU: with AVX512, by conversion where need be, or ARM's own bf16.

    torch tells of it in public since 2.10 alone (`torch.cpu.get_capabilities`). Where the system does not tell, outside
    of Linux, it is taken to have none, and `auto` is fp32.
    """
    flags = cpu_flags()
    return torch.backends.mkldnn.is_available() and ({"avx512bw", "avx512dq", "avx512vl"} <= flags or "bf16" in flags)


def _keep_freed_memory() -> None:
    """Have the C library keep what a training step frees, since the next step needs just as much.

    By default glibc gives every large array back to the system, which hands out zeroed pages again: with `smallcnn`
    that takes a third of the time. Other C libraries are left alone.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_MAX, 0)
        libc.mallopt(TRIM_THRESHOLD, -1)
