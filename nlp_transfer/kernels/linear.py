"""Linear layers in bf16. They cast fp32 weights once per weight update instead of once per forward pass."""

from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

MIN_PACKED = 16  # outputs of a layer; for fewer, and few tokens, the call of oneDNN costs more than it saves


def not_a_view(tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Reshape the result of a custom autograd function without registering a view.

    Autograd forbids in-place changes of views that custom functions return, but Longformer makes such changes. Do not use
    `tensor` afterwards.
    """
    return torch.ops.aten._unsafe_view(tensor, shape)


@cache
def can_pack() -> bool:
    """Return whether this PyTorch and this CPU can multiply by bf16 weights in oneDNN's layout, as `torch.compile` does."""
    operators = torch.ops.mkldnn
    names = ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise")
    return all(hasattr(operators, name) for name in names) and bool(operators._is_mkldnn_bf16_supported())


class Bf16Copies:
    """Cache of bf16 copies of fp32 parameters. A copy is renewed if its parameter has changed."""

    def __init__(self) -> None:
        # The references to parameters prevent reuse of their ids.
        self._copies: dict[tuple[int, bool], tuple[nn.Parameter, int, torch.Tensor]] = {}

    def of(self, parameter: nn.Parameter, packed: bool = False) -> torch.Tensor:
        """Return the bf16 copy of a parameter, detached from the graph.

        Args:
            packed: whether to return a weight in the layout that oneDNN otherwise has to produce in every product.
        """
        key = (id(parameter), packed)
        cached = self._copies.get(key)
        if cached is not None and cached[1] == parameter._version:
            return cached[2]
        with torch.inference_mode(False), torch.no_grad():  # so that training can use copies made in prediction
            if packed:
                copy = torch.ops.mkldnn._reorder_linear_weight(parameter.detach().to(torch.bfloat16))
            else:
                copy = parameter.detach().to(torch.bfloat16) if cached is None else cached[2].copy_(parameter)
        self._copies[key] = (parameter, parameter._version, copy)
        return copy


class Linear(torch.autograd.Function):
    """Linear layer that computes the same bits as under autocast: products in bf16, gradients of the parameters in fp32."""

    @staticmethod
    def forward(
        ctx: Any, values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, weight16: torch.Tensor,
        bias16: torch.Tensor | None,
    ) -> torch.Tensor:  # fmt: skip
        ctx.dtype, ctx.weight16, ctx.bias = values.dtype, weight16, bias is not None
        values = values.to(torch.bfloat16)
        ctx.save_for_backward(values)
        result = F.linear(values.reshape(-1, values.shape[-1]), weight16, bias16)
        return not_a_view(result, (*values.shape[:-1], result.shape[-1]))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (values,) = ctx.saved_tensors
        gradient = gradients[0].reshape(-1, gradients[0].shape[-1])
        d_values = (gradient @ ctx.weight16).view(values.shape).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        d_weight = (gradient.t() @ values.reshape(-1, values.shape[-1])).float() if ctx.needs_input_grad[1] else None
        d_bias = gradient.sum(0).float() if ctx.bias and ctx.needs_input_grad[2] else None
        return d_values, d_weight, d_bias, None, None


def linear(values: torch.Tensor, weight: nn.Parameter, bias: nn.Parameter | None, copies: Bf16Copies) -> torch.Tensor:
    """Return `values @ weight.T + bias` in bf16, of shape (..., out).

    Args:
        values: fp32 or bf16 of shape (..., in).
        weight: fp32 of shape (out, in).
        bias: fp32 of shape (out,), or None.
        copies: cache of bf16 weights.
    """
    bias16 = None if bias is None else copies.of(bias)
    if not torch.is_grad_enabled() and len(weight) >= MIN_PACKED and can_pack():
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            values.to(torch.bfloat16), copies.of(weight, packed=True), bias16, "none", [], ""
        )
        return product
    return Linear.apply(values, weight, bias, copies.of(weight), bias16)
