"""Dropout with few random numbers and integer arithmetic.

On CPUs, PyTorch draws one random number per element, so dropout takes longer than layer normalization and the residual
connection together. This implementation draws one 64-bit random number for four elements in bf16, or for two in fp32, and
computes and applies the mask with integer operations.
"""

import math
from typing import Any

import numpy as np
import torch

WORDS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
"""For each floating-point type, the integer type of the same width."""


def keep_mask(shape: torch.Size, p: float, dtype: torch.dtype) -> torch.Tensor:
    """Draw a dropout mask: -1 (all bits set) to keep an element, 0 to drop it, in the integer type of `dtype`.

    Elements are dropped with probability `p`, rounded to 15 bits (fp32: 31 bits). The seed comes from the random generator of
    PyTorch. Restoring the state of the generator, as gradient checkpointing does, therefore reproduces the mask.
    """
    integer = WORDS[dtype]
    bits = 8 * integer.itemsize - 1
    number = math.prod(shape)
    seed = int(torch.randint(2**62, ()))
    words = np.random.SFC64(seed).random_raw(-(-number * integer.itemsize // 8))
    drawn = torch.from_numpy(words.view(np.int64)).view(integer)[:number].view(shape)
    drawn >>= 1  # so that the subtraction cannot overflow
    drawn -= round(p * 2**bits) - 2 ** (bits - 1)
    drawn >>= bits  # the sign: -1 below the threshold
    return drawn.bitwise_not_()


def apply_mask(values: torch.Tensor, mask: torch.Tensor, p: float) -> torch.Tensor:
    """Return a new tensor in which kept elements are scaled by 1 / (1 - p) and dropped elements are zero."""
    scaled = values * (1 / (1 - p))
    scaled.view(mask.dtype).bitwise_and_(mask)
    return scaled


class Dropout(torch.autograd.Function):
    """Dropout (Srivastava et al. 2014, "Dropout: A Simple Way to Prevent Neural Networks from Overfitting")."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, p: float) -> torch.Tensor:
        ctx.p, mask = p, keep_mask(values.shape, p, values.dtype)
        ctx.save_for_backward(mask)
        return apply_mask(values, mask, p)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (mask,) = ctx.saved_tensors
        return apply_mask(gradients[0], mask, ctx.p), None


def dropout(values: torch.Tensor, p: float) -> torch.Tensor:
    """Return a new tensor in which each element is dropped with probability `p` (0 <= p < 1) or else scaled by 1 / (1 - p).

    Args:
        values: bf16, fp16 or fp32 of any shape, on the CPU.
    """
    return Dropout.apply(values, p)
