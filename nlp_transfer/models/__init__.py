"""Checkpoints, layers, heads and devices, and what is verified before a model is loaded."""
