"""Requests to a model hub: one guarded HTTP client, and pushing a saved model."""
