"""Output for human readers: the model card and plots."""
