"""Predict and translate with a saved model: texts, tables and files of any size."""
