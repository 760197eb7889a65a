"""Foundations: messages, files, locks, signals. Nothing here knows about training."""
