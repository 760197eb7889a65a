"""Self-supervised learning of image classifiers from the command line."""

from pathlib import Path

__version__ = "0.1.0"

_PACKAGED = Path(__file__).parent / "conf"  # in a wheel; in the repository conf/ lies beside the package
CONF = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parent.parent / "conf"


def command(stage: str) -> str:
    """Return what is typed to run a stage."""
    return f"sslrun data {stage}" if stage in ("fetch", "check", "preview") else f"sslrun {stage}"
