"""Linear layers in bf16 whose fp32 weights are cast once for each change, not in each forward pass."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


def not_a_view(tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor that nothing else refers to in another shape, for a custom function to return.

    Autograd refuses to change a view from a custom function in place, as Longformer does; this one counts as no view.
    """
    return torch.ops.aten._unsafe_view(tensor, shape)


class Bf16Copies:
    """bf16 copies of fp32 parameters, renewed when a parameter has changed in place."""

    def __init__(self) -> None:
        self._copies: dict[int, tuple[nn.Parameter, tuple[int, int], torch.Tensor]] = {}  # held, so that ids stay their own
        self._changes = 0

    def changed(self) -> None:
        """Tells that parameters may have changed unnoticed: fused optimisers do not count their changes in a tensor's version."""
        self._changes += 1

    def of(self, parameter: nn.Parameter) -> torch.Tensor:
        """The parameter in bf16, without a graph."""
        found, version = self._copies.get(id(parameter)), (self._changes * parameter.requires_grad, parameter._version)
        if found is not None and found[1] == version:
            return found[2]
        with torch.inference_mode(False), torch.no_grad():  # made while predicting, it must serve training too
            copy = parameter.detach().to(torch.bfloat16) if found is None else found[2].copy_(parameter)
        self._copies[id(parameter)] = (parameter, version, copy)
        return copy


class Linear(torch.autograd.Function):
    """What autocast makes of a linear layer, bit for bit: products in bf16, gradients of the parameters in fp32."""

    @staticmethod
    def forward(
        ctx: Any, values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, weight16: torch.Tensor,
        bias16: torch.Tensor | None,
    ) -> torch.Tensor:  # fmt: skip
        ctx.dtype, ctx.weight16, ctx.bias = values.dtype, weight16, bias is not None
        values = values.to(torch.bfloat16)
        ctx.save_for_backward(values)
        found = F.linear(values.reshape(-1, values.shape[-1]), weight16, bias16)
        return not_a_view(found, (*values.shape[:-1], found.shape[-1]))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (values,) = ctx.saved_tensors
        gradient = gradients[0].reshape(-1, gradients[0].shape[-1])
        of_values = (gradient @ ctx.weight16).view(values.shape).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        of_weight = (gradient.t() @ values.reshape(-1, values.shape[-1])).float() if ctx.needs_input_grad[1] else None
        of_bias = gradient.sum(0).float() if ctx.bias and ctx.needs_input_grad[2] else None
        return of_values, of_weight, of_bias, None, None


def linear(values: torch.Tensor, weight: nn.Parameter, bias: nn.Parameter | None, copies: Bf16Copies) -> torch.Tensor:
    """`values @ weight.T + bias` in bf16.

    Args:
        values: (..., in), fp32 or bf16.
        weight: fp32, (out, in).
        bias: fp32, (out,); None: there is none.
    """
    bias16 = None if bias is None else copies.of(bias)
    return Linear.apply(values, weight, bias, copies.of(weight), bias16)
