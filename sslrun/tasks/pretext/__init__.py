"""Pretext tasks: one file a task, with its views, head and loss."""
