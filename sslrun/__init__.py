"""Self-supervised learning of image classifiers from the command line."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sslrun.api import Model

__version__ = "0.1.0"

_PACKAGED = Path(__file__).parent / "conf"  # in a wheel; in the repository conf/ lies beside the package
CONF = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parent.parent / "conf"
WITH_PICTURES = ("predict", "embed", "search", "suggest")  # commands that take names of pictures as they are


def command(stage: str) -> str:
    """Return what is typed to run a stage."""
    return f"sslrun data {stage}" if stage in ("fetch", "check", "preview") else f"sslrun {stage}"


def load(run: str | Path = "latest", device: str = "auto") -> "Model":
    """Read the classifier of a finetuned run; see `sslrun.api`.

    Args:
        run: its directory, or `latest` below outputs/.
        device: auto, cpu, cuda or mps.
    """
    from sslrun.api import load  # torch takes a second to import, which `sslrun --help` does not have

    return load(run, device)
