"""Learning rates of adapters, and rates that depend on the depth of a layer, for models with or without a peft adapter."""

import re
from dataclasses import replace
from typing import Any

from torch import nn

from nlp_transfer.models.layers import Layers, encoder_type, find_layers, has_decoder, width
from nlp_transfer.models.preparation import has_untrained_decoder
from nlp_transfer.strategies.common.job import Group
from nlp_transfer.strategies.common.strategy_traits import default_learning_rate
from nlp_transfer.utils.errors import UserError

HEAD_SCALE = 10.0  # learning rate of the head relative to that of pretrained layers; the default of full fine-tuning
DECODER_SCALE = 3.0  # the same for a new decoder: lower, since a decoder is deep
PEFT_NAMES = re.compile(r"^base_model\.model\.|\.modules_to_save\.default(?=\.)|\.base_layer(?=\.)")


def adapter_rate(model: nn.Module, narrow: float = 2e-3, wide: float = 5e-4) -> float:
    """Return the learning rate of a strategy that trains only an adapter or other small parts of the encoder.

    For a new decoder, which is trained completely, the rate is lower.

    Args:
        narrow: rate for an encoder width of at most 512. Default: that of LoRA, whose updates start at zero.
        wide: the same for wider encoders.
    """
    if has_untrained_decoder(model):
        return default_learning_rate(model) * DECODER_SCALE
    return narrow if width(model) <= 512 else wide


def plain_name(name: str) -> str:
    """Return a parameter's name without the prefixes and infixes that peft adds."""
    return PEFT_NAMES.sub("", name)


def added_by_peft(name: str) -> bool:
    """Return whether a parameter belongs to an adapter. Its name then contains the adapter name `default`."""
    return "default" in plain_name(name).split(".")


def inner_layers(model: nn.Module) -> Layers:
    """Return the layers of a model, with or without an adapter.

    Raises:
        UserError: If the model family is unknown.
    """
    wrapped: Any = model
    return find_layers(wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else model)


def separate_layers(model: nn.Module, strategy: str, why: str) -> Layers:
    """Return the layers of a model, and check that they have separate weights.

    Args:
        strategy: Name of the strategy, for the message.
        why: What shared weights make impossible, for the message.

    Raises:
        UserError: If the layers share their weights, as in ALBERT, or the model family is unknown.
    """
    layers = inner_layers(model)
    if layers.shared:
        raise UserError(
            f"strategy.name: found {strategy}; a {encoder_type(model.config)} model shares one set of weights among its layers, "
            f"so {why}; allowed: another strategy"
        )
    return layers


def scale_head(model: nn.Module, groups: list[Group], factor: float) -> list[Group]:
    """Split the groups, and set the factor on the learning rate of the pooler and the head.

    The decoder of an encoder-decoder is treated like a head. Its factor is 1 if it is pretrained. For a new decoder, the factor
    is at most `DECODER_SCALE`.
    """
    try:
        layers = find_layers(model)
    except UserError:  # an unknown family has a single learning rate
        return groups
    if has_decoder(model):
        factor = 1.0 if layers.decoder else min(factor, DECODER_SCALE)
    split = []
    for group in groups:
        head = [name for name in group.names if layers.depth_of(name) > layers.depth]
        body = [name for name in group.names if layers.depth_of(name) <= layers.depth]
        split += [replace(group, names=body), replace(group, names=head, learning_rate_scale=factor)]
    return split


def scale_mixed_head(model: nn.Module, groups: list[Group]) -> list[Group]:
    """Apply `scale_head` with `HEAD_SCALE`, unless another strategy in the list already determines the learning rate of the head.

    That is assumed if parts of the encoder are frozen, or if no group contains both pretrained layers and the head.
    """
    try:
        layers = inner_layers(model)
    except UserError:  # an unknown family has a single learning rate
        return groups
    body = {name for name, _ in model.named_parameters() if layers.depth_of(plain_name(name)) <= layers.depth}
    frozen = any(name in body and not parameter.requires_grad for name, parameter in model.named_parameters())
    mixed = any(0 < len(body.intersection(group.names)) < len(group.names) for group in groups)
    return scale_head(model, groups, HEAD_SCALE) if mixed and not frozen else groups
