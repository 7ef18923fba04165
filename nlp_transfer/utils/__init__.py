"""Errors, console output, atomic files, ranks and the operating system."""
