"""A trained network in use: the Python API, and what is found with features."""
