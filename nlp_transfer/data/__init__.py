"""Read, check and split the rows of a run, and turn them into tokens and batches."""
