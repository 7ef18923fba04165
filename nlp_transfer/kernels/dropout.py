"""Dropout whose random numbers cost little.

PyTorch draws a number for each element, one after the other: on CPUs dropout then costs more than the layer normalisation and
the residual connection around it together. Here a 64-bit word serves four elements of bf16, or two of fp32, and the mask is
made and applied with integer operations alone.
"""

import math
from typing import Any

import numpy as np
import torch

WORDS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
"""The integer of the same width, by type."""


def keep_mask(shape: torch.Size, p: float, dtype: torch.dtype) -> torch.Tensor:
    """-1 (all bits set) where an element is kept and 0 where it is dropped, in the integer type as wide as `dtype`.

    An element is dropped with the probability `p`, rounded to 15 bits (fp32: to 31). Only the seed is drawn from PyTorch's
    generator: where that is put back, as gradient checkpointing does, the mask is the same again.
    """
    kind = WORDS[dtype]
    bits = 8 * kind.itemsize - 1
    number = math.prod(shape)
    seed = int(torch.randint(2**62, ()))
    words = np.random.SFC64(seed).random_raw(-(-number * kind.itemsize // 8))
    drawn = torch.from_numpy(words.view(np.int64)).view(kind)[:number].view(shape)
    drawn >>= 1  # one bit of room, so that the subtraction cannot overflow
    drawn -= round(p * 2**bits) - 2 ** (bits - 1)
    drawn >>= bits  # the sign: -1 below the threshold
    return drawn.bitwise_not_()


def masked(values: torch.Tensor, mask: torch.Tensor, p: float) -> torch.Tensor:
    """The kept elements, scaled so that the expectation stays what it was; a new tensor."""
    scaled = values * (1 / (1 - p))
    scaled.view(mask.dtype).bitwise_and_(mask)
    return scaled


class Dropout(torch.autograd.Function):
    """Srivastava et al. 2014, "Dropout: A Simple Way to Prevent Neural Networks from Overfitting"."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, p: float) -> torch.Tensor:
        ctx.p, mask = p, keep_mask(values.shape, p, values.dtype)
        ctx.save_for_backward(mask)
        return masked(values, mask, p)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (mask,) = ctx.saved_tensors
        return masked(gradients[0], mask, ctx.p), None


def dropout(values: torch.Tensor, p: float) -> torch.Tensor:
    """A new tensor with elements dropped with probability `p` (0 <= p < 1) and the others scaled by 1 / (1 - p).

    Args:
        values: of any shape, in bf16, fp16 or fp32, on the CPU.
    """
    return Dropout.apply(values, p)
