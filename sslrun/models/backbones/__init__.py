"""Backbones: one file each, found by the `_target_` of its YAML."""
