"""Studies: the compared classifiers, the runs that they need, and the results."""
