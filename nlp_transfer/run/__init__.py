"""One run: its settings, its folder, what it writes and what it reports."""
