"""Statistics: ROC figures with intervals, and paired tests. NumPy and SciPy only."""
