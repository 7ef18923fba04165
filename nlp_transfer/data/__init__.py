"""Checked, named splits -> tokens -> windows of batches."""
