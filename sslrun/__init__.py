"""Self-supervised learning of image classifiers from the command line."""

from pathlib import Path
from typing import TYPE_CHECKING

from sslrun.base.version import __version__

if TYPE_CHECKING:
    from sslrun.inference.model import Model

__all__ = ["__version__", "load"]


def load(run: str | Path = "latest", device: str = "auto") -> "Model":
    """Read the classifier of a finetuned run; see `sslrun.inference.model`.

    Args:
        run: its directory, or `latest` below outputs/.
        device: auto, cpu, cuda or mps.
    """
    from sslrun.inference.model import load  # torch takes a second to import, which `sslrun --help` does not have

    return load(run, device)
