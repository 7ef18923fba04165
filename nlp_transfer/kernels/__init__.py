"""Fast CPU implementations of PyTorch functions, tested against the originals."""
