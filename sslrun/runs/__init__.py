"""The run directory: what is written where, resuming, and finding earlier runs."""
