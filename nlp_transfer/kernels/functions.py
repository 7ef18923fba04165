"""Replace PyTorch functions with fast kernels in any model, without changing the model."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from nlp_transfer.kernels.attention import attention, attention_bias
from nlp_transfer.kernels.dropout import WORDS, dropout
from nlp_transfer.kernels.linear import Bf16Copies, linear

SCORES = 2**26  # maximum number of attention scores in memory (128 MiB); for more, use PyTorch's kernel, which stores few

Lookup = Callable[[torch.Tensor, int | None], torch.Tensor]  # (token ids, padding index) -> vectors


class FastFunctions(TorchFunctionMode):
    """Context in which dropout, linear layers, attention and embedding lookups use the kernels of this package.

    PyTorch handles calls that a kernel does not support (other devices, precisions or arguments). Do not combine the context
    with gradient checkpointing, which recomputes activations outside of it and would get other values.

    Args:
        lookups: functions that replace the embedding lookup, each under the `id` of its table.
        copies: copies of the weights of the model.
    """

    def __init__(self, lookups: Mapping[int, Lookup] | None = None, copies: Bf16Copies | None = None) -> None:
        super().__init__()
        self.copies, self.lookups = copies or Bf16Copies(), dict(lookups or {})
        self._bias: tuple[torch.Tensor, torch.Tensor] | None = None
        self._fast: dict[Any, Callable[..., torch.Tensor | None]] = {
            F.dropout: self._dropout,
            torch._C._nn.linear: self._linear,
            F.scaled_dot_product_attention: self._attention,
            F.embedding: self._embedding,
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        fast = self._fast.get(func)
        result = None if fast is None else fast(*args, **kwargs)
        return func(*args, **kwargs) if result is None else result

    def _dropout(self, input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor | None:
        if not training or p == 0:
            return input
        if inplace or input.device.type != "cpu" or input.dtype not in WORDS or not 0 < p < 1:
            return None
        return dropout(input, p)

    def _linear(self, input: torch.Tensor, weight: Any, bias: Any = None) -> torch.Tensor:
        # PyTorch multiplies inputs that are not contiguous in another order if the weight is frozen.
        input = input.contiguous()
        if not _computes_bf16(input) or not _is_weight(weight) or not (bias is None or _is_weight(bias)):
            return torch._C._nn.linear(input, weight, bias)
        return linear(input, weight, bias, self.copies)

    def _attention(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> torch.Tensor | None:  # fmt: skip
        supported = (
            query.ndim == 4 and key.shape[:2] == query.shape[:2] and query.dtype == key.dtype == value.dtype == torch.bfloat16
        )
        mask_has_gradient = attn_mask is not None and attn_mask.requires_grad
        scores = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2]
        if not supported or query.device.type != "cpu" or mask_has_gradient or dropout_p == 1 or scores > SCORES:
            return None
        if is_causal:
            attn_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
        bias = None if attn_mask is None else self._cached_bias(attn_mask, query.dtype)
        return attention(query, key, value, bias, dropout_p, query.shape[-1] ** -0.5 if scale is None else scale)

    def _cached_bias(self, mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if self._bias is None or self._bias[0] is not mask:  # all layers of a forward pass share a mask
            self._bias = (mask, attention_bias(mask, dtype))
        return self._bias[1]

    def _embedding(
        self, input: torch.Tensor, weight: torch.Tensor, padding_idx: int | None = None, max_norm: float | None = None,
        norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False,
    ) -> torch.Tensor | None:  # fmt: skip
        lookup = self.lookups.get(id(weight))
        if lookup is None or max_norm is not None or scale_grad_by_freq or sparse:
            return None
        return lookup(input, padding_idx)


def _computes_bf16(values: torch.Tensor) -> bool:
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return autocast and values.device.type == "cpu" and values.dtype in (torch.float32, torch.bfloat16)


def _is_weight(tensor: Any) -> bool:
    return isinstance(tensor, nn.Parameter) and tensor.dtype == torch.float32
