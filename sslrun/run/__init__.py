"""The run directory: its files, resuming, and finding earlier runs."""
