"""Redaction of secrets, safe terminal output, locked files and isolated child processes."""
