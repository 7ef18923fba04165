"""Training on cached features: a forward pass that starts where the fixed part of a model ends.

Above the cut everything runs as ever, dropout and all, so training on cached features is training on live ones, without the
forward pass that would give the same states in every epoch.
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
from nlp_transfer.models.cached_features import Cut, base_of, cache_tables, layers_of
from nlp_transfer.models.checkpoint import is_encoder_decoder
from nlp_transfer.models.heads import EncoderHeadForSequenceClassification
from nlp_transfer.utils.errors import UserError, shorten

TOLERANCE = 1e-4


def replay(model: PreTrainedModel, cut: Cut) -> None:
    """From now on a forward pass that is given cached states starts at the cut; without them all runs as before.

    Names of parameters stay. `run_live` undoes it.

    Raises:
        UserError: the model has a decoder, which reads the states of all tokens.
    """
    if is_encoder_decoder(model):
        raise UserError(
            f"strategy.cache: the decoder of a {model.config.model_type} model reads the states of all tokens, so it cannot be "
            "trained on cached features; allowed: none"
        )
    undo: list[Callable[[], None]] = []
    given: dict[str, torch.Tensor] = {}
    if cut.depth is None and isinstance(model, EncoderHeadForSequenceClassification):
        return  # its forward takes what was pooled

    def take(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if cut.column in named:
            given["states"] = named.pop(cut.column)
        return arguments, named

    undo.append(model.register_forward_pre_hook(take, with_kwargs=True).remove)
    undo.append(model.register_forward_hook(lambda *_: given.clear(), always_call=True).remove)
    if cut.depth is None:
        undo.append(_swap_forward(base_of(model), lambda live: _whole(base_of(model), given, live)))
    else:
        layers = layers_of(model)
        for layer in layers[: cut.depth]:
            undo.append(_swap_forward(layer, lambda live: _skipped(given, live)))

        def put(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            if "states" not in given:
                return arguments, named
            return ((given["states"], *arguments[1:]), named) if arguments else ((), named | {"hidden_states": given["states"]})

        undo.append(layers[cut.depth].register_forward_pre_hook(put, with_kwargs=True).remove)

    model.undo_replay = undo  # type: ignore[assignment]


def run_live(model: PreTrainedModel) -> PreTrainedModel:
    """The model as it was before `replay`."""
    for step in getattr(model, "undo_replay", []):
        step()
    model.undo_replay = []  # type: ignore[assignment]
    return model


def _swap_forward(module: nn.Module, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Callable[[], None]:
    module.forward = make(module.forward)
    return lambda: delattr(module, "forward")


def _whole(base: Any, given: dict[str, torch.Tensor], live: Callable[..., Any]) -> Callable[..., Any]:
    """An encoder whose only token is the cached vector."""

    def forward(*arguments: Any, **named: Any) -> Any:
        if "states" not in given:
            return live(*arguments, **named)
        states = given["states"][:, None]
        pooler = getattr(base, "pooler", None)
        if pooler is None:
            return BaseModelOutputWithPooling(last_hidden_state=states)
        if isinstance(pooler, nn.Linear):  # ALBERT's, whose activation lies beside it
            return BaseModelOutputWithPooling(
                last_hidden_state=states, pooler_output=base.pooler_activation(pooler(states[:, 0]))
            )
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=pooler(states))

    return forward


def _skipped(given: dict[str, torch.Tensor], live: Callable[..., Any]) -> Callable[..., Any]:
    """A layer that is passed by; it is below the cut, and what it would give is replaced there."""
    returned: list[type] = []

    def forward(*arguments: Any, **named: Any) -> Any:
        if "states" not in given or not returned:
            found = live(*arguments, **named)
            returned[:] = [type(found)]
            return found
        states = arguments[0] if arguments else named["hidden_states"]
        return (states, None) if returned[0] is tuple else states

    return forward


def check_replay(model: PreTrainedModel, table: TokenTable, cut: Cut, device: torch.device) -> None:
    """Compares logits from cached states with live ones on a few rows.

    Raises:
        UserError: they differ: the family does not run as the cut supposes.
    """
    live = replace(table.select(np.arange(min(4, len(table)))), cached={})
    few = cache_tables(model, {"probe": live}, cut, device, where="memory")["probe"]
    with torch.inference_mode():
        found = []
        for part in (live, few):
            inputs = {name: tensor.to(device) for name, tensor in model_inputs(part.batch(np.arange(len(few)))).items()}
            found.append(model(**inputs).logits.float())
    difference = float((found[0] - found[1]).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(found[0].abs().max())) + (0 if device.type == "cpu" else 1e-2):
        raise UserError(
            f"strategy.cache: {model.config.model_type} models give other logits from cached features than live (they differ by "
            f"{shorten(difference)}); allowed: none"
        )
