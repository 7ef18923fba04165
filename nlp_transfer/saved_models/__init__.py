"""Saved models: write them, verify them, and load them again."""
