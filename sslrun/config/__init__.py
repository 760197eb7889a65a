"""The config: composing it, checking it, building objects from it."""
