"""Metrics, and how certain they are."""
