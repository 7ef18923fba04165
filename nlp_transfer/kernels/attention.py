"""Scaled dot-product attention in bf16 on CPUs.

PyTorch's fused CPU kernel is optimized for long sequences. Its backward pass takes much longer than the matrix products in it:
ten times as long for 32 rows of 16 tokens, twice as long for 16 rows of 256 tokens. With dropout, PyTorch falls back to an
implementation that copies the scores several times. This implementation writes scores and probabilities once, in bf16, and
computes the softmax in fp32.
"""

from typing import Any

import torch

from nlp_transfer.kernels.dropout import apply_mask, keep_mask
from nlp_transfer.kernels.linear import not_a_view

FLOATS = 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8  # fp32 numbers in a SIMD register


def in_fp32(columns: int) -> bool:
    """Return whether the softmax of bf16 rows with `columns` elements is faster in fp32.

    This is the case if a row fills an fp32 register but not a bf16 register. PyTorch processes a row that is shorter than a
    register element by element.
    """
    return FLOATS <= columns < 2 * FLOATS


def softmax(scores: torch.Tensor) -> torch.Tensor:
    """Compute the softmax over the last dimension in place, in fp32 internally."""
    if in_fp32(scores.shape[-1]):
        return scores.copy_(torch.softmax(scores.float(), -1))
    return torch.softmax(scores, -1, out=scores)


def softmax_backward(gradient: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    """Return the gradient of the input of `softmax`."""
    if in_fp32(probabilities.shape[-1]):
        scores_gradient = torch._softmax_backward_data(gradient.float(), probabilities.float(), -1, torch.float32)
        return scores_gradient.to(probabilities.dtype)
    return torch._softmax_backward_data(gradient, probabilities, -1, probabilities.dtype)


class Attention(torch.autograd.Function):
    """Scaled dot-product attention (Vaswani et al. 2017, "Attention Is All You Need", 1706.03762)."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None, p: float, scale: float
    ) -> torch.Tensor:
        rows, heads, tokens, width = query.shape
        flat = rows * heads
        query = (query * scale).reshape(flat, tokens, width)
        key, value = key.reshape(flat, -1, width), value.reshape(flat, -1, value.shape[-1])
        scores = torch.bmm(query, key.transpose(1, 2))
        if bias is not None:
            scores.view(rows, heads, tokens, -1).add_(bias)
        probabilities = softmax(scores)
        mask = keep_mask(probabilities.shape, p, probabilities.dtype) if p else None
        dropped = probabilities if mask is None else apply_mask(probabilities, mask, p)
        ctx.p, ctx.scale, ctx.rows = p, scale, rows
        ctx.save_for_backward(query, key, value, probabilities, dropped, mask)
        return not_a_view(torch.bmm(dropped, value), (rows, heads, tokens, value.shape[-1]))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        query, key, value, probabilities, dropped, mask = ctx.saved_tensors
        gradient = gradients[0].reshape(len(query), query.shape[1], -1)
        d_value = torch.bmm(dropped.transpose(1, 2), gradient)
        d_scores = torch.bmm(gradient, value.transpose(1, 2))
        if mask is not None:
            d_scores = apply_mask(d_scores, mask, ctx.p)
        d_scores = softmax_backward(d_scores, probabilities)
        d_query = torch.bmm(d_scores, key).mul_(ctx.scale)
        d_key = torch.bmm(d_scores.transpose(1, 2), query)
        gradients_4d = [tensor.view(ctx.rows, -1, *tensor.shape[1:]) for tensor in (d_query, d_key, d_value)]
        return *gradients_4d, None, None, None


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None, p: float, scale: float
) -> torch.Tensor:
    """Compute scaled dot-product attention.

    Args:
        query: bf16 of shape (rows, heads, tokens, width). `key` and `value` may have another number of tokens.
        bias: added to the scores. Its shape must broadcast to (rows, heads, tokens, key tokens). It gets no gradient.
        p: dropout probability.
        scale: factor on the scores before `bias` is added.

    Returns:
        bf16 of shape (rows, heads, tokens, width).
    """
    return Attention.apply(query, key, value, bias, p, scale)


def attention_bias(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Convert an attention mask to a bias of the same shape. The mask is either bool (true: attend) or already a bias.

    Masked positions get the smallest finite number, so that a fully masked row does not become NaN.
    """
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
