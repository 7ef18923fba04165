"""The last layer for the token that is read.

A classifier on the first token reads one vector of the last layer; what that layer computes for all other tokens is thrown away,
forward and back. Keys and values are still needed of all tokens, the rest (of the layer's 12 squared widths of products ten) of
the first one alone. Logits and gradients stay what they were up to rounding.
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
"""Model types whose sequence classifier reads the first token of the last layer, and whose layers are built as below."""


def last_layer(model: nn.Module) -> nn.Module | None:
    """The layer of which the first token alone is read; null: of this model all are, or it is not known."""
    inner = next((part for part in model.modules() if isinstance(part, PreTrainedModel)), None)
    if inner is None:
        return None
    config: Any = inner.config
    family = type(inner).__name__.endswith("ForSequenceClassification") and config.model_type in FAMILIES
    own = config.model_type == "nlp_transfer_encoder_head" and (config.pooling, config.layers) == ("cls", "last")
    if not (family or (own and config.encoder.get("model_type") in FAMILIES)) or getattr(config, "is_decoder", False):
        return None
    layers = [module for module in inner.modules() if _forward_of(module) is not None]
    return layers[-1] if layers else None


@contextmanager
def first_token_only(layer: nn.Module | None) -> Iterator[None]:
    """Within it, a layer that `last_layer` has found gives back states of the first token alone: (rows, 1, width).

    Whoever wants hidden states or attentions of that layer must not ask for them in this context.
    """
    forward = None if layer is None else _forward_of(layer)
    if layer is None or forward is None:
        yield
        return
    whole, before = layer.forward, vars(layer).get("forward")
    layer.forward = partial(forward, layer, whole)
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


def _bert(layer: Any, whole: Any, states: torch.Tensor, attention_mask: Any = None, *others: Any, **named: Any) -> torch.Tensor:
    if not _is_plain(attention_mask, others, named):
        return whole(states, attention_mask, *others, **named)
    own, output = layer.attention.self, layer.attention.output
    first = states[:, :1]
    projected = own.query(first), own.key(states), own.value(states)
    found = _attend(projected, own.attention_head_size, attention_mask, own.dropout, own.scaling)
    return layer.feed_forward_chunk(output(found, first))


def _distilbert(
    layer: Any, whole: Any, states: torch.Tensor, attention_mask: Any = None, *others: Any, **named: Any
) -> torch.Tensor:
    if not _is_plain(attention_mask, others, named):
        return whole(states, attention_mask, *others, **named)
    own, first = layer.attention, states[:, :1]
    projected = own.q_lin(first), own.k_lin(states), own.v_lin(states)
    found = own.out_lin(_attend(projected, own.attention_head_size, attention_mask, own.dropout, own.scaling))
    found = layer.sa_layer_norm(found + first)
    return layer.output_layer_norm(layer.ffn(found) + found)


def _is_plain(mask: Any, others: tuple[Any, ...], named: dict[str, Any]) -> bool:
    """Whether a layer was called with states and a mask that stands for each pair of tokens, and nothing else that matters."""
    further = (*others, *(named.get(name) for name in ("past_key_values", "encoder_hidden_states")))
    return (mask is None or (isinstance(mask, torch.Tensor) and mask.ndim == 4)) and all(value is None for value in further)


def _attend(
    projected: tuple[torch.Tensor, torch.Tensor, torch.Tensor], size: int, mask: torch.Tensor | None, dropout: nn.Dropout,
    scale: float,
) -> torch.Tensor:  # fmt: skip
    query, key, value = (part.view(*part.shape[:2], -1, size).transpose(1, 2) for part in projected)
    p = dropout.p if dropout.training else 0.0
    seen = None if mask is None else mask[:, :, :1]
    found = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, dropout_p=p, scale=scale)
    return found.transpose(1, 2).flatten(2)
