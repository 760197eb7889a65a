"""Numbers: features, probes, metrics, calibration, intervals."""
