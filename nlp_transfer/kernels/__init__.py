"""Faster ways to compute on CPUs what PyTorch computes; each has a test that compares it with PyTorch's own."""
