"""Pictures and labels: sources, splits, decoding."""
