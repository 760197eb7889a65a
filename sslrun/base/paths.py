"""Paths of the config files and of the cache."""

import os
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_PACKAGED = _PACKAGE / "conf"  # in a wheel; in the repository conf/ is next to the package
CONF = _PACKAGED if _PACKAGED.is_dir() else _PACKAGE.parent / "conf"


def home() -> Path:
    """Return the cache folder: `SSLRUN_CACHE`, or `sslrun` below `XDG_CACHE_HOME` or `~/.cache`."""
    own = os.environ.get("SSLRUN_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "sslrun")
