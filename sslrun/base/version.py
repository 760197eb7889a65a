"""The version of sslrun, which stands here alone; pyproject.toml reads it."""

__version__ = "0.2.0.dev0"
