"""Set the dropout, frozen parameters, training mode, gradient checkpointing and precision of a model, and merge adapters."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from nlp_transfer.models.layers import has_decoder, new_parameters
from nlp_transfer.models.sdpa import attention_for_any_shape
from nlp_transfer.utils.errors import UserError

# Names of dropout rates in the configurations of model families.
HIDDEN_DROPOUT = (
    "hidden_dropout_prob", "dropout", "dropout_rate", "pooler_dropout", "classifier_dropout", "seq_classif_dropout",
    "embedding_dropout", "mlp_dropout", "classifier_dropout_prob", "head_dropout",
)  # fmt: skip
ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout")
LAYER_DROPOUT = ("encoder_layerdrop", "decoder_layerdrop")


def dropout_overrides(config: PretrainedConfig, hidden: float | None, attention: float | None) -> dict[str, Any]:
    """Return the configuration fields that set the dropout rates of a model, with their new values.

    LayerDrop is always off: distributed processes would wait forever for the gradients of skipped layers.

    Args:
        hidden: dropout rate of hidden layers; None keeps the checkpoint's rate.
        attention: dropout rate of attention weights; None keeps the checkpoint's rate.
    """
    chosen = {name: rate for names, rate in ((HIDDEN_DROPOUT, hidden), (ATTENTION_DROPOUT, attention)) for name in names}
    chosen |= dict.fromkeys(LAYER_DROPOUT, 0.0)
    fields: dict[str, Any] = {name: rate for name, rate in chosen.items() if rate is not None and hasattr(config, name)}
    if hasattr(config, "encoder_config"):  # the toolkit's head stores the encoder's configuration as a dict
        inner = dropout_overrides(config.encoder_config(), hidden, attention)
        fields["encoder"] = {**config.encoder, **inner}
    return fields


def replaced_parameters(model: nn.Module) -> frozenset[str]:
    """Return the names of new parameters that had a different shape in the checkpoint, such as a classifier for other labels."""
    return getattr(model, "replaced_parameters", frozenset())


def has_untrained_decoder(model: nn.Module) -> bool:
    """Return whether the model generates text with a decoder that has randomly initialized parameters."""
    return has_decoder(model) and bool(new_parameters(model))


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return the number of trainable parameters and of all parameters; shared parameters count once."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)


def freeze(model: nn.Module, names: set[str]) -> None:
    """Freeze the parameters with these names."""
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad_(False)


def enable_gradient_checkpointing(model: nn.Module) -> None:
    """Recompute activations in the backward pass, which saves memory.

    Raises:
        UserError: the model family does not support it.
    """
    any_model: Any = model
    if not getattr(any_model, "supports_gradient_checkpointing", False):
        family = any_model.config.model_type
        raise UserError(f"training.gradient_checkpointing: found true, which {family} models do not support; allowed: false")
    enable = getattr(any_model, "activation_checkpointing_enable", None) or any_model.gradient_checkpointing_enable  # older name
    enable({"use_reentrant": False})  # the reentrant implementation loses gradients above frozen layers


def train_mode(model: nn.Module) -> None:
    """Set modules with trainable parameters to training mode, and frozen modules to evaluation mode.

    Dropout in a frozen layer would only add noise to the features of the trainable layers.
    """
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def describe_head(model: nn.Module) -> list[str]:
    """Return a list with a message that the checkpoint's head is used or was replaced; the list is empty if it had no head."""
    note: str | None = getattr(model, "head_note", None)
    return [note] if note else []


def merge_adapter(model: Any) -> PreTrainedModel:
    """Merge an adapter into the weights of its base, and return the base without any PEFT modules.

    Fully trained modules (`modules_to_save`) are unwrapped first, because some PEFT methods would keep the wrapper, or merge
    into it.
    """
    from peft.utils.other import ModulesToSaveWrapper

    for name, module in list(model.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            model.set_submodule(name, module.modules_to_save[module.active_adapter])
    merged: PreTrainedModel = model.merge_and_unload()
    return merged


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Let a model with fp32 weights compute in `precision` (`fp32`, `bf16` or `fp16`) inside the context."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    with attention_for_any_shape(), nullcontext() if precision == "fp32" else torch.autocast(device.type, dtype=dtype):
        yield
