"""Fast CPU kernels for training and inference, behind one entry point.

`accelerated(model)` is a context for forward and backward passes; `accelerated(model, optimizer)` also clips gradients and
updates embedding tables. Results are those of PyTorch up to rounding, and dropout masks are other random draws. Each kernel is
tested against the function that it replaces.
"""

from nlp_transfer.kernels.acceleration import Acceleration, accelerated

__all__ = ["Acceleration", "accelerated"]
