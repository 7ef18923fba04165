"""Train on cached features: start forward passes where the frozen part of the model ends.

Everything above the cache point runs as usual, including dropout. The results therefore equal those of training without a cache,
but the frozen layers do not run in every epoch.
"""

from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from nlp_transfer.data.tokens import TokenTable, model_inputs
from nlp_transfer.models.backbone import Backbone
from nlp_transfer.models.cached_features import CachePoint, cache_tables
from nlp_transfer.models.heads import EncoderHeadForSequenceClassification
from nlp_transfer.models.layers import encoder_type, is_encoder_decoder
from nlp_transfer.models.memory import is_out_of_memory
from nlp_transfer.utils.errors import UserError, shorten

TOLERANCE = 1e-4
_HOOKS: WeakKeyDictionary[nn.Module, list[RemovableHandle]] = WeakKeyDictionary()  # hooks of each model with replay


def enable_replay(model: PreTrainedModel, point: CachePoint) -> None:
    """Let forward passes start at the cache point if their inputs include cached features. Other passes run as usual.

    `disable_replay` restores the model.

    Raises:
        UserError: the model has a decoder, which reads the states of all tokens.
    """
    if is_encoder_decoder(model):
        raise UserError(
            f"strategy.cache: the decoder of a {model.config.model_type} model reads the states of all tokens, so it cannot be "
            "trained on cached features; allowed: none"
        )
    if point.depth is None and isinstance(model, EncoderHeadForSequenceClassification):
        return  # its forward method accepts pooled features
    backbone, replay = Backbone(model), ExitStack()

    def start(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if point.column in named:
            cached = named.pop(point.column)
            start_here = backbone.run_head(cached) if point.depth is None else backbone.run_from(point.depth, cached)
            replay.enter_context(start_here)
        return arguments, named

    _HOOKS[model] = [
        model.register_forward_pre_hook(start, with_kwargs=True),
        model.register_forward_hook(lambda *_: replay.close(), always_call=True),
    ]


def disable_replay(model: PreTrainedModel) -> PreTrainedModel:
    """Undo `enable_replay` and return the model."""
    for hook in _HOOKS.pop(model, []):
        hook.remove()
    return model


def check_replay(model: PreTrainedModel, table: TokenTable, point: CachePoint, device: torch.device) -> None:
    """Check on up to four rows that cached features give the same logits as live features.

    Raises:
        UserError: the logits differ, or a forward pass fails, so this model family cannot be trained on cached features.
    """
    family = encoder_type(model.config)
    live_table = replace(table.select(np.arange(min(4, len(table)))), cached={})

    def logits(rows: TokenTable) -> torch.Tensor:
        inputs = {name: tensor.to(device) for name, tensor in model_inputs(rows.batch(np.arange(len(rows)))).items()}
        result: torch.Tensor = model(**inputs).logits.float()
        return result

    try:
        cached_table = cache_tables(model, {"probe": live_table}, point, device, where="memory")["probe"]
        with torch.inference_mode():
            live, replayed = logits(live_table), logits(cached_table)
    except Exception as error:
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        raise UserError(
            f"strategy.cache: {family} models cannot start from cached features: a forward pass fails: "
            f"{type(error).__name__}: {shorten(str(error))}; allowed: none"
        ) from error
    difference = float((live - replayed).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(live.abs().max())) + (0 if device.type == "cpu" else 1e-2):
        raise UserError(
            f"strategy.cache: logits from cached and from live features of {family} models differ by "
            f"{shorten(difference)}; allowed: none"
        )
