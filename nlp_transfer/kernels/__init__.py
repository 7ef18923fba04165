"""Faster CPU implementations of PyTorch functions; each is tested against the original."""
