"""Save, model card, and loading what was saved."""
