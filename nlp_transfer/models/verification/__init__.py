"""Checks of model files from elsewhere, made before any library reads them."""
