"""Models: checkpoints, layers, heads, devices, cached features, and checks of model files before they are loaded."""
