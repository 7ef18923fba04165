"""Encoder-decoder models: building, warm-starting, tokenizers and generation."""
