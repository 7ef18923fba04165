"""What the commands share: options, settings completed from a table, messages of launched processes."""
