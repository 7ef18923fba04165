"""The schema of all settings, their validation, and the registry of tasks and strategies."""
