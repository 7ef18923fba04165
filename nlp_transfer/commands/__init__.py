"""Code that the commands share: options, inference of settings from a table, and error messages of several processes."""
