"""What several strategies need to know about depth, also where peft has wrapped the model."""

import re
from typing import Any

from torch import nn

from nlp_transfer.models.layers import Layers, encoder_type, find_layers
from nlp_transfer.strategies import Group, scale_head
from nlp_transfer.utils.errors import UserError

HEAD_SCALE = 10.0  # what full fine-tuning takes by default
WRAPPED = re.compile(r"^base_model\.model\.|\.modules_to_save\.default(?=\.)|\.base_layer(?=\.)")


def plain_name(name: str) -> str:
    """A parameter's name as it was before peft wrapped the model."""
    return WRAPPED.sub("", name)


def added_by_peft(name: str) -> bool:
    """Whether a parameter is part of an adapter: peft puts the adapter's name into it, and that is always this one."""
    return "default" in plain_name(name).split(".")


def inner_layers(model: nn.Module) -> Layers:
    """The layers, by plain names. Raises a UserError as `find_layers` does."""
    whole: Any = model
    return find_layers(whole.get_base_model() if hasattr(whole, "get_base_model") else model)


def separate_layers(model: nn.Module, strategy: str, why: str) -> Layers:
    """The layers. Raises a UserError where they share one set of weights, or cannot be told apart."""
    layers = inner_layers(model)
    if layers.shared:
        raise UserError(
            f"strategy.name: found {strategy}; a {encoder_type(model.config)} model shares one set of weights among its layers, "
            f"so {why}; allowed: another strategy"
        )
    return layers


def head_apart(model: nn.Module, groups: list[Group]) -> list[Group]:
    """The groups with the head at full fine-tuning's rate, unless another strategy of a list has decided about that.

    It has where parts of the encoder are fixed, or where no group holds pretrained layers and the head together any more.
    """
    try:
        layers = inner_layers(model)
    except UserError:  # an unknown family: it still trains, at one rate
        return groups
    body = {name for name, _ in model.named_parameters() if layers.depth_of(plain_name(name)) <= layers.depth}
    fixed = any(name in body and not parameter.requires_grad for name, parameter in model.named_parameters())
    mixed = any(0 < len(body.intersection(group.names)) < len(group.names) for group in groups)
    return scale_head(model, groups, HEAD_SCALE) if mixed and not fixed else groups
