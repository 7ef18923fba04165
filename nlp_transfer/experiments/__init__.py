"""Comparisons of strategies: planning and running them, statistics, tables and the HTML page."""
