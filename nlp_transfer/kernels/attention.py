"""Scaled dot-product attention in bf16 on CPUs.

PyTorch's fused kernel for CPUs is built for long rows; its backward pass costs many times the products that are in it
(32 x 16 tokens: ten times the plain ones, 16 x 256: twice), and with dropout it falls back to a path that makes several copies
of the scores. Here the scores and the probabilities are written once, in bf16; the softmax computes in fp32.
"""

from typing import Any

import torch

from nlp_transfer.kernels.dropout import keep_mask, masked
from nlp_transfer.kernels.linear import not_a_view

FLOATS = 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8  # fp32 numbers in a vector of the processor


def in_fp32(columns: int) -> bool:
    """Whether rows of so many bf16 numbers are done faster as fp32: they fill a vector of those, which has half as many lanes,
    and PyTorch takes rows that fill none number by number."""
    return FLOATS <= columns < 2 * FLOATS


def softmax(scores: torch.Tensor) -> torch.Tensor:
    """Over the last dimension, computed in fp32; in place."""
    if in_fp32(scores.shape[-1]):
        return scores.copy_(torch.softmax(scores.float(), -1))
    return torch.softmax(scores, -1, out=scores)


def softmax_backward(gradient: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    """The gradient of what went into `softmax`."""
    if in_fp32(probabilities.shape[-1]):
        found = torch._softmax_backward_data(gradient.float(), probabilities.float(), -1, torch.float32)
        return found.to(probabilities.dtype)
    return torch._softmax_backward_data(gradient, probabilities, -1, probabilities.dtype)


class Attention(torch.autograd.Function):
    """Vaswani et al. 2017, "Attention Is All You Need", 1706.03762."""

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
        used = probabilities if mask is None else masked(probabilities, mask, p)
        ctx.p, ctx.scale, ctx.rows = p, scale, rows
        ctx.save_for_backward(query, key, value, probabilities, used, mask)
        return not_a_view(torch.bmm(used, value), (rows, heads, tokens, value.shape[-1]))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        query, key, value, probabilities, used, mask = ctx.saved_tensors
        gradient = gradients[0].reshape(len(query), query.shape[1], -1)
        of_value = torch.bmm(used.transpose(1, 2), gradient)
        of_scores = torch.bmm(gradient, value.transpose(1, 2))
        if mask is not None:
            of_scores = masked(of_scores, mask, ctx.p)
        of_scores = softmax_backward(of_scores, probabilities)
        of_query = torch.bmm(of_scores, key).mul_(ctx.scale)
        of_key = torch.bmm(of_scores.transpose(1, 2), query)
        parts = [part.view(ctx.rows, -1, *part.shape[1:]) for part in (of_query, of_key, of_value)]
        return *parts, None, None, None


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None, p: float, scale: float
) -> torch.Tensor:
    """What each token takes from the others: (rows, heads, tokens, width), bf16.

    Args:
        query: bf16, (rows, heads, tokens, width); `key` and `value` may have another number of tokens.
        bias: added to the scores, of a shape that broadcasts to theirs; no gradient is computed for it.
        p: dropout of the probabilities.
        scale: factor on the products of queries and keys.
    """
    return Attention.apply(query, key, value, bias, p, scale)


def attention_bias(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask of attention as what is added to scores: bool (true: seen) or already such numbers.

    What is not seen gets the smallest finite number: a row that sees nothing stays a number.
    """
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
