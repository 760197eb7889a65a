"""Pretext tasks: one file per task, with its views, head and loss."""
