"""Inference with trained networks: the Python API, cached features, suggestions of images to label."""
