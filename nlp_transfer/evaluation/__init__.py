"""Metrics of a split, bootstrap resampling, and confidence intervals."""
