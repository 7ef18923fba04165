"""Sequence-to-sequence models: building, loading, tokenizers, and generation."""
