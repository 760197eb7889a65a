"""Self-supervised learning of image classifiers from the command line."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslrun.base.version import __version__

if TYPE_CHECKING:
    from sslrun.base import errors
    from sslrun.base.errors import UserError
    from sslrun.cli.python import evaluate, finetune, pretrain, runs
    from sslrun.inference.model import Model

__all__ = ["UserError", "__version__", "errors", "evaluate", "finetune", "load", "pretrain", "runs"]
COMMANDS = ("evaluate", "finetune", "pretrain", "runs")  # of sslrun.cli.python


def load(run: str | Path = "latest", device: str = "auto") -> "Model":
    """Load the classifier of a finetuned run; see `sslrun.inference.model`.

    Args:
        run: the run's directory, or `latest` for the newest run in outputs/.
        device: auto, cpu, cuda or mps.
    """
    from sslrun.inference.model import load  # lazy: importing torch takes a second

    return load(run, device)


def __getattr__(name: str) -> Any:
    """Import on first use what takes time to import, and the commands, which stand above this module."""
    if name in COMMANDS:
        from sslrun.cli import python

        return getattr(python, name)
    from sslrun.base import errors

    if name == "errors":
        return errors
    if name == "UserError":
        return errors.UserError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
