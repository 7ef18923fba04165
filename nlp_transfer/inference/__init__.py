"""Predict, translate and evaluate with a saved model: texts, tables and files of any size."""
