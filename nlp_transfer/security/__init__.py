"""Redaction of secrets, safe terminal output, file locks and isolated child processes."""
