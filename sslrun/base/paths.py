"""Paths of the config files and of the cache."""

import os
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
_PACKAGED = PACKAGE / "conf"  # in a wheel; in the repository conf/ and docs/ are next to the package
_TOP = PACKAGE if _PACKAGED.is_dir() else PACKAGE.parent
CONF, EXTENDING = _TOP / "conf", _TOP / "docs" / "extending.md"


def home() -> Path:
    """Return the cache folder: `SSLRUN_CACHE`, or `sslrun` below `XDG_CACHE_HOME` or `~/.cache`, or a temporary one."""
    if own := os.environ.get("SSLRUN_CACHE"):
        return Path(own)
    if own := os.environ.get("XDG_CACHE_HOME"):
        return Path(own, "sslrun")
    try:
        return Path.home() / ".cache" / "sslrun"
    except RuntimeError:  # a user without a home, as in a container
        return Path(tempfile.gettempdir(), f"sslrun-{os.getuid()}")


def shown(path: Path) -> str:
    """Return a path for a message: relative to the current folder if it lies below it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
