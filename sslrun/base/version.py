"""The version of sslrun; pyproject.toml reads it from here."""

SCHEMA = 1  # of the files that programs read, docs/files.md
__version__ = "0.2.0.dev0"
