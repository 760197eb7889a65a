"""Evaluation: features, probes, metrics, calibration, confidence intervals."""
