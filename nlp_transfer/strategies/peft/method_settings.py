"""The methods of the installed peft, their settings, and the default values that depend on the model."""

import copy
import dataclasses
import math
import re
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.models.layers import Layers, encoder_config, find_layers, has_decoder, linear_layers, width
from nlp_transfer.settings.base_settings import Document
from nlp_transfer.strategies.common.adapter_modules import (
    chosen_layers,
    last_of_layers,
    module_pattern,
    modules_to_save,
    norm_pattern,
)
from nlp_transfer.utils.errors import UserError

KEY_OR_VALUE = re.compile(r"(key|value|k_proj|v_proj|key_proj|value_proj|k_lin|v_lin|attn\.[kv]|Wqkv|Attention\.[kv])$")
PREFIX_METHODS = ("PREFIX_TUNING", "CARTRIDGE")  # they extend the keys and values of every layer, not the input
# `make_config` sets `modules_to_save`. The other settings make peft import modules, or load files other than models and adapters.
HIDDEN_FIELDS = {"modules_to_save", "tokenizer_kwargs", "megatron_config", "megatron_core"}


def methods() -> dict[str, Any]:
    """Return the configuration classes of the installed peft, by method name."""
    import peft  # noqa: F401  # registers the classes
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return {kind.value: schema for kind, schema in PEFT_TYPE_TO_CONFIG_MAPPING.items()}


def user_fields(schema: Any) -> dict[str, Any]:
    """Return the fields of a configuration class that users may set, by name."""
    from peft import PeftConfig

    hidden = {field.name for field in dataclasses.fields(PeftConfig)} | HIDDEN_FIELDS
    return {field.name: field for field in dataclasses.fields(schema) if field.init and field.name not in hidden}


def to_type_of(default: Any, value: Any) -> Any:
    """Convert text to a number if the default is a number. This is necessary because YAML reads 1e-4 as text."""
    if not isinstance(value, str) or isinstance(default, bool) or not isinstance(default, (int, float)):
        return value
    try:
        return type(default)(value)
    except ValueError:  # peft reports the error
        return value


def make_config(method: str, settings: Document, model: PreTrainedModel) -> Any:
    """Create the peft configuration of a method, from the settings of the user and from defaults that depend on the model.

    Raises:
        UserError: If the method does not work with this model, or a layer in the settings does not exist.
    """
    layers, schema = find_layers(model), methods()[method]
    fields, settings = user_fields(schema), copy.deepcopy(settings)
    _check_method(method, schema, settings)
    if "target_modules" in fields:
        settings |= _target_modules(method, settings, model, layers, "feedforward_modules" in fields)
    if "num_virtual_tokens" in fields:
        settings = _prompt_sizes(method, model) | settings
    if "progressbar" in fields:
        settings.setdefault("progressbar", False)
    for name in {"block_size", "group_size", "vector_length"} & set(fields):  # must divide the widths of the layers
        divisor = math.gcd(*(size for inner in linear_layers(model, layers) for size in _shape(model, inner)))
        settings.setdefault(name, max(n for n in range(1, fields[name].default + 1) if divisor % n == 0))
    return schema(**settings, modules_to_save=modules_to_save(model, layers))


def _check_method(method: str, schema: Any, settings: Document) -> None:
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.utils.peft_types import PeftType

    fields = {field.name for field in dataclasses.fields(schema)}
    moves_ranks = hasattr(PEFT_TYPE_TO_TUNER_MAPPING.get(PeftType(method)), "update_and_allocate")
    if moves_ranks and ("use_asa" not in fields or settings.get("use_asa")):
        raise UserError(
            f"strategy.type: found {method}{' with use_asa' if 'use_asa' in fields else ''}; it moves ranks between layers after "
            "every step, by statistics that are not part of a checkpoint; allowed: methods of a fixed size, such as LORA"
        )
    if "modules_to_save" not in fields:
        raise UserError(
            f"strategy.type: found {method}; it cannot save a head with the adapter, and the head is new; allowed: others, such "
            "as LORA"
        )


def _prompt_sizes(method: str, model: PreTrainedModel) -> Document:
    """Return those settings of a prompt method that describe the dimensions of the model."""
    if has_decoder(model):
        raise UserError(not_for_generation(method))
    if not hasattr(model.config.get_text_config(), "vocab_size"):
        raise UserError(
            f"strategy.type: found {method}; peft adds prompts only to a model with the head of its family; allowed with this "
            "head: methods that change layers, such as IA3"
        )
    encoder = encoder_config(model.config)
    return {
        "num_virtual_tokens": 20,
        "token_dim": width(model) if method in PREFIX_METHODS else input_embeddings(model).embedding_dim,
        "num_layers": encoder.num_hidden_layers,
        "num_attention_heads": encoder.num_attention_heads,
    }


def not_for_generation(method: str) -> str:
    """Return the error message for a method that cannot be merged, in a task that generates text."""
    return f"strategy.type: found {method}; it cannot be merged, and generating text needs a method that can be, such as LORA"


def _target_modules(method: str, settings: Document, model: PreTrainedModel, layers: Layers, has_feedforward: bool) -> Document:
    """Return `target_modules` and the settings that depend on it, as regular expressions for full module paths."""
    requested, numbers = settings.get("target_modules"), settings.get("layers_to_transform")
    known = list(linear_layers(model, layers))
    feedforward = last_of_layers(model, layers)
    if isinstance(requested, str) and requested not in ("all", "all-linear", "attention"):
        return {}  # a regular expression, which peft itself applies
    if requested is not None:
        requested = "all" if requested == "all-linear" else requested
        chosen = chosen_layers(model, layers, requested, "strategy.settings.target_modules")
    elif has_feedforward:  # IA3: keys, values and the output of the feed-forward block
        chosen = [name for name in known if KEY_OR_VALUE.search(name) or name in feedforward] or known
    else:
        chosen = known
    targets: Document = {}
    if numbers is not None:
        numbers = list(numbers) if isinstance(numbers, (list, tuple)) else [numbers]
        depth = layers.lower or layers.depth  # in an encoder-decoder, the layers of each stack are counted from 0
        if outside := [n for n in numbers if not isinstance(n, int) or not 0 <= n < depth]:
            raise UserError(
                f"strategy.settings.layers_to_transform: found {outside[0]!r}; allowed: 0 to {depth - 1}, the layers of this "
                "model"
            )
        targets |= {"layers_to_transform": None, "layers_pattern": None}
    if requested is None and method == "LN_TUNING":
        return {"target_modules": norm_pattern(model, layers)}
    if has_feedforward and "feedforward_modules" not in settings:
        targets["feedforward_modules"] = module_pattern(
            layers, [name for name in chosen if name in feedforward] or ["-"], numbers
        )
    return targets | {"target_modules": module_pattern(layers, chosen, numbers)}


def _shape(model: nn.Module, inner: str) -> tuple[int, ...]:
    return next(tuple(module.weight.shape) for name, module in model.named_modules() if name.endswith(f".{inner}"))


def input_embeddings(model: Any) -> nn.Embedding:
    """Return the word embeddings of the encoder."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    encoder = plain.get_encoder() if has_decoder(plain) else getattr(plain, plain.base_model_prefix)
    embeddings: nn.Embedding = encoder.get_input_embeddings()
    return embeddings
