"""Layer reduction: initialize a smaller model with some layers of a pretrained one.

Sanh et al. 2019, "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter", 1910.01108.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.models.layers import (
    change_encoder_config,
    encoder_config,
    encoder_type,
    find_layers,
    is_encoder_decoder,
    new_parameters,
    set_new_parameters,
)
from nlp_transfer.utils.errors import UserError


def evenly_spaced(depth: int, count: int) -> list[int]:
    """Return the indices of `count` of `depth` layers: the first, the last, and evenly spaced layers in between.

    Example: for 6 of 12 layers, 0, 2, 4, 7, 9 and 11, as in DistilBERT. If `count` is 1, the first layer is returned.
    """
    return [0] if count == 1 else [round(i * (depth - 1) / (count - 1)) for i in range(count)]


def keep_layers(model: PreTrainedModel, count: int, setting: str) -> PreTrainedModel:
    """Remove all but `count` layers from the model, in place, and update `new_parameters` and the configuration.

    If all layers share their weights, as in ALBERT, the shared layer is applied fewer times.

    Args:
        setting: The setting that contains the count, for messages.

    Raises:
        UserError: If the model has fewer layers than that, has an adapter, or has an unsupported architecture.
    """
    if hasattr(model, "peft_config"):
        raise UserError(f"{setting}: found {count} after an adapter was added, which needs all layers; allowed: null")
    if is_encoder_decoder(model):
        raise UserError(f"{setting}: found {count}; a {encoder_type(model.config)} model has two stacks of layers; allowed: null")
    layers = find_layers(model)
    depth = int(encoder_config(model.config).num_hidden_layers)
    least = layers.depth if layers.shared else 1
    if not least <= count <= depth:
        raise UserError(
            f"{setting}: found {count}; allowed: {least} to {depth}, the layers of this {encoder_type(model.config)} model"
        )
    kept = evenly_spaced(depth, count)
    if not layers.shared:
        parent, _, name = layers.prefix.rpartition(".")
        stack: Any = model.get_submodule(layers.prefix)
        setattr(model.get_submodule(parent), name, nn.ModuleList(stack[i] for i in kept))
        for i, layer in enumerate(model.get_submodule(layers.prefix).children()):
            for module in layer.modules():
                if hasattr(module, "layer_idx"):
                    module.layer_idx = i  # type: ignore[assignment]
    _update_configs(model, kept, layers.shared)
    new_prefixes = {f"{layers.prefix}.{old}.": f"{layers.prefix}.{new}." for new, old in enumerate(kept)}
    names = new_parameters(model) if layers.shared else _renamed(new_parameters(model), layers.prefix, new_prefixes)
    set_new_parameters(model, names)
    return model


def _renamed(names: frozenset[str], prefix: str, new_prefixes: dict[str, str]) -> frozenset[str]:
    inside = {name for name in names if name.startswith(f"{prefix}.")}
    return (names - inside) | {
        new + name.removeprefix(old) for name in inside for old, new in new_prefixes.items() if name.startswith(old)
    }


def _update_configs(model: Any, kept: list[int], shared: bool) -> None:
    """Update the number and types of layers in the configurations of the model and its encoder."""

    def change(config: Any) -> None:
        config.num_hidden_layers = len(kept)
        if getattr(config, "layer_types", None):
            config.layer_types = [config.layer_types[i] for i in kept]
        if hasattr(config, "num_hidden_groups") and not shared:
            config.num_hidden_groups = len(kept)

    change_encoder_config(model, change)
    if hasattr(model, "mix"):  # one weight for the embeddings and one per layer
        with torch.no_grad():
            model.mix.weight = nn.Parameter(model.mix.weight[[0, *(i + 1 for i in kept)]].clone())
