"""One file per data set, found by the `_target_` of its YAML; see `source.py`."""
