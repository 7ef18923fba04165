"""Save models, verify them, and load them again."""
