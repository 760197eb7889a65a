"""Where and in which precision the arithmetic is done."""

from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor, nn

from sslrun.config import PositiveInt, UserError
from sslrun.data.images import Images


class Device:
    """A device, its precision and its memory format.

    Args:
        name: `auto` is a CUDA GPU if there is one, else the CPU.
        precision: `auto` is bf16 where the hardware multiplies it natively (a GPU since Ampere, a CPU with AVX512-BF16
            or AMX), else fp16 on a GPU and fp32 on a CPU. Weights stay in fp32 always; the loss is computed in fp32.
        threads: CPU threads, null leaves torch's choice.

    Raises:
        UserError: no such device here.
    """

    def __init__(
        self,
        *,
        name: Literal["auto", "cpu", "cuda", "mps"],
        precision: Literal["auto", "fp32", "bf16", "fp16"],
        threads: PositiveInt | None,
    ) -> None:
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cuda" and not torch.cuda.is_available():
            raise UserError("device=cuda: torch sees no CUDA GPU here; say device=cpu or device=auto")
        if name == "mps" and not torch.backends.mps.is_available():
            raise UserError("device=mps: torch sees no Apple GPU here; say device=cpu or device=auto")
        if precision == "fp16" and name == "cpu":
            raise UserError("device.precision=fp16 needs a GPU; on a CPU say bf16 or fp32")
        if threads:
            torch.set_num_threads(threads)
        self.torch = torch.device(name)
        self.precision = _native(name) if precision == "auto" else precision
        self.scaler = torch.amp.GradScaler(name, enabled=self.precision == "fp16")

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context in which the forward pass runs."""
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.torch.type, dtype, enabled=self.precision != "fp32")

    def put(self, module: nn.Module) -> nn.Module:
        """Move a module to the device, in the channels-last memory format (NHWC), which convolutions are fastest in."""
        return module.to(self.torch, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def hold(self, images: Images) -> Images:
        """Move a whole data set to the device if it fits in half of its free memory, else leave it where it is."""
        if self.torch.type == "cuda" and images.nbytes > torch.cuda.mem_get_info()[0] // 2:
            return images
        return images.to(self.torch)

    def floats(self, images: Tensor) -> Tensor:
        """Turn uint8 pictures into floats in [0, 1] on the device, channels last."""
        x = images.to(self.torch, non_blocking=True).float().div_(255)
        return x.contiguous(memory_format=torch.channels_last)

    def describe(self) -> str:
        """Return the device's name for people."""
        if self.torch.type == "cuda":
            return torch.cuda.get_device_name()
        return f"{self.torch.type} ({torch.get_num_threads()} threads)" if self.torch.type == "cpu" else "mps"


def _native(name: str) -> Literal["fp32", "bf16", "fp16"]:
    if name == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if name == "cpu" and native else "fp32"
