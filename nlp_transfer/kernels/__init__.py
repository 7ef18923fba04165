"""Fast CPU kernels for training and inference. `accelerated` switches them on.

`accelerated(model)` is a context for forward and backward passes; `accelerated(model, optimizer)` also clips gradients and
updates embedding tables. Results are equal to those of PyTorch up to rounding, except that other dropout masks are drawn. Each
kernel is tested against the function that it replaces.
"""

from nlp_transfer.kernels.acceleration import Acceleration, accelerated

__all__ = ["Acceleration", "accelerated"]
