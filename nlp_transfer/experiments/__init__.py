"""Many runs compared: plan, processes, statistics, tables and page."""
