"""Train on cached features: start forward passes where the frozen part of the model ends.

Everything above the cache point runs as usual, including dropout. The results therefore equal those of live features, without the
forward pass of the frozen layers in every epoch. Hooks and replaced `forward` methods leave the model's class and parameter names
unchanged, so optimizers, PEFT and saving are not affected.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from nlp_transfer.data.tokens import TokenTable, model_inputs
from nlp_transfer.models.cached_features import CachePoint, base_encoder, cache_tables, encoder_layers
from nlp_transfer.models.heads import EncoderHeadForSequenceClassification
from nlp_transfer.models.layers import is_encoder_decoder
from nlp_transfer.utils.errors import UserError, shorten

TOLERANCE = 1e-4


def enable_replay(model: PreTrainedModel, point: CachePoint) -> None:
    """Let forward passes with cached features start at the cache point; without features they run as usual.

    `disable_replay` restores the model.

    Raises:
        UserError: the model has a decoder, which reads the states of all tokens.
    """
    if is_encoder_decoder(model):
        raise UserError(
            f"strategy.cache: the decoder of a {model.config.model_type} model reads the states of all tokens, so it cannot be "
            "trained on cached features; allowed: none"
        )
    undo: list[Callable[[], None]] = []
    cached: dict[str, torch.Tensor] = {}  # features of the current forward pass
    if point.depth is None and isinstance(model, EncoderHeadForSequenceClassification):
        return  # its forward method accepts pooled features

    def take_features(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if point.column in named:
            cached["states"] = named.pop(point.column)
        return arguments, named

    undo.append(model.register_forward_pre_hook(take_features, with_kwargs=True).remove)
    undo.append(model.register_forward_hook(lambda *_: cached.clear(), always_call=True).remove)
    if point.depth is None:
        undo.append(_replace_forward(base_encoder(model), lambda live: _cached_encoder(base_encoder(model), cached, live)))
    else:
        layers = encoder_layers(model)
        for layer in layers[: point.depth]:
            undo.append(_replace_forward(layer, lambda live: _skipped_layer(cached, live)))

        def insert_features(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            if "states" not in cached:
                return arguments, named
            return ((cached["states"], *arguments[1:]), named) if arguments else ((), named | {"hidden_states": cached["states"]})

        undo.append(layers[point.depth].register_forward_pre_hook(insert_features, with_kwargs=True).remove)

    model.undo_replay = undo  # type: ignore[assignment]


def disable_replay(model: PreTrainedModel) -> PreTrainedModel:
    """Undo `enable_replay` and return the model."""
    for step in getattr(model, "undo_replay", []):
        step()
    model.undo_replay = []  # type: ignore[assignment]
    return model


def _replace_forward(module: nn.Module, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Callable[[], None]:
    module.forward = make(module.forward)
    return lambda: delattr(module, "forward")


def _cached_encoder(encoder: Any, cached: dict[str, torch.Tensor], live: Callable[..., Any]) -> Callable[..., Any]:
    """Return a forward method that outputs the cached vector as the state of a single token; the pooler still runs."""

    def forward(*arguments: Any, **named: Any) -> Any:
        if "states" not in cached:
            return live(*arguments, **named)
        states = cached["states"][:, None]
        pooler = getattr(encoder, "pooler", None)
        pooled = None if pooler is None else pooler(states[:, 0] if isinstance(pooler, nn.Linear) else states)
        if isinstance(pooler, nn.Linear):  # ALBERT's, whose activation is another module
            pooled = encoder.pooler_activation(pooled)
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=pooled)

    return forward


def _skipped_layer(cached: dict[str, torch.Tensor], live: Callable[..., Any]) -> Callable[..., Any]:
    """Return a forward method that skips a layer; cached features replace its output at the cache point.

    The first pass runs the layer, to learn whether the family's layers return a tuple.
    """
    output_type: list[type] = []

    def forward(*arguments: Any, **named: Any) -> Any:
        if "states" not in cached or not output_type:
            output = live(*arguments, **named)
            output_type[:] = [type(output)]
            return output
        states = arguments[0] if arguments else named["hidden_states"]
        return (states, None) if output_type[0] is tuple else states

    return forward


def check_replay(model: PreTrainedModel, table: TokenTable, point: CachePoint, device: torch.device) -> None:
    """Compare the logits from cached and from live features on up to four rows.

    Raises:
        UserError: they differ, so this model family cannot be trained on cached features.
    """
    live_table = replace(table.select(np.arange(min(4, len(table)))), cached={})
    cached_table = cache_tables(model, {"probe": live_table}, point, device, where="memory")["probe"]

    def logits(rows: TokenTable) -> torch.Tensor:
        inputs = {name: tensor.to(device) for name, tensor in model_inputs(rows.batch(np.arange(len(rows)))).items()}
        result: torch.Tensor = model(**inputs).logits.float()
        return result

    with torch.inference_mode():
        live, replayed = logits(live_table), logits(cached_table)
    difference = float((live - replayed).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(live.abs().max())) + (0 if device.type == "cpu" else 1e-2):
        raise UserError(
            f"strategy.cache: logits from cached and from live features of {model.config.model_type} models differ by "
            f"{shorten(difference)}; allowed: none"
        )
