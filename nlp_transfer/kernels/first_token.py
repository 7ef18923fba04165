"""Compute the last layer of an encoder only for the first token.

A classifier on the first token discards the outputs of the last layer for all other tokens. The layer must compute keys and
values for all tokens, but the rest (10 of its 12 width-by-width matrix products) only for the first one. Logits and gradients
are the same up to rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "data2vec-text", "distilbert")
"""Supported model types: the sequence classifier reads the first token of the last layer."""


def last_layer(model: nn.Module) -> nn.Module | None:
    """Return the last layer, if the model uses only its first token. None: all tokens are used, or the model is not supported."""
    inner = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    if inner is None:
        return None
    config: Any = inner.config
    family_head = type(inner).__name__.endswith("ForSequenceClassification") and config.model_type in FAMILIES
    toolkit_head = config.model_type == "nlp_transfer_encoder_head" and (config.pooling, config.layers) == ("cls", "last")
    if not (family_head or (toolkit_head and config.encoder.get("model_type") in FAMILIES)) or getattr(
        config, "is_decoder", False
    ):
        return None
    layers = [module for module in inner.modules() if _forward_of(module) is not None]
    return layers[-1] if layers else None


@contextmanager
def first_token_only(layer: nn.Module | None) -> Iterator[None]:
    """Make the layer from `last_layer` return only the states of the first token, of shape (rows, 1, width).

    Inside the context, the other hidden states and the attention weights of the layer are not available.
    """
    forward = None if layer is None else _forward_of(layer)
    if layer is None or forward is None:
        yield
        return
    original, before = layer.forward, vars(layer).get("forward")
    layer.forward = partial(forward, layer, original)
    try:
        yield
    finally:
        if before is None:
            del layer.forward
        else:
            layer.forward = before


def _forward_of(module: nn.Module) -> Any:
    inner = getattr(module, "attention", None)
    if isinstance(inner, nn.Module):
        if hasattr(module, "feed_forward_chunk") and hasattr(getattr(inner, "self", None), "query"):
            return _bert
        if hasattr(module, "sa_layer_norm") and hasattr(inner, "q_lin"):
            return _distilbert
    return None


def _bert(
    layer: Any, original: Any, states: torch.Tensor, attention_mask: Any = None, *others: Any, **named: Any
) -> torch.Tensor:
    if not _is_supported(attention_mask, others, named):
        return original(states, attention_mask, *others, **named)
    attention, output = layer.attention.self, layer.attention.output
    first = states[:, :1]
    projected = attention.query(first), attention.key(states), attention.value(states)
    context = _attend(projected, attention.attention_head_size, attention_mask, attention.dropout, attention.scaling)
    return layer.feed_forward_chunk(output(context, first))


def _distilbert(
    layer: Any, original: Any, states: torch.Tensor, attention_mask: Any = None, *others: Any, **named: Any
) -> torch.Tensor:
    if not _is_supported(attention_mask, others, named):
        return original(states, attention_mask, *others, **named)
    attention, first = layer.attention, states[:, :1]
    projected = attention.q_lin(first), attention.k_lin(states), attention.v_lin(states)
    context = _attend(projected, attention.attention_head_size, attention_mask, attention.dropout, attention.scaling)
    hidden = layer.sa_layer_norm(attention.out_lin(context) + first)
    return layer.output_layer_norm(layer.ffn(hidden) + hidden)


def _is_supported(mask: Any, others: tuple[Any, ...], named: dict[str, Any]) -> bool:
    """Return whether a layer was called only with states and optionally a mask of shape (rows, 1 or heads, tokens, tokens)."""
    extra = (*others, *(named.get(name) for name in ("past_key_values", "encoder_hidden_states")))
    return (mask is None or (isinstance(mask, torch.Tensor) and mask.ndim == 4)) and all(value is None for value in extra)


def _attend(
    projected: tuple[torch.Tensor, torch.Tensor, torch.Tensor], size: int, mask: torch.Tensor | None, dropout: nn.Dropout,
    scale: float,
) -> torch.Tensor:  # fmt: skip
    query, key, value = (tensor.view(*tensor.shape[:2], -1, size).transpose(1, 2) for tensor in projected)
    p = dropout.p if dropout.training else 0.0
    first_mask = None if mask is None else mask[:, :, :1]
    context = F.scaled_dot_product_attention(query, key, value, attn_mask=first_mask, dropout_p=p, scale=scale)
    return context.transpose(1, 2).flatten(2)
